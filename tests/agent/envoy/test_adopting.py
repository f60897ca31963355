"""Whose process is taken back, whose is ended, and whose is left alone."""

import asyncio
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from meshagent.agent.envoy.record import Record, Records
from meshagent.machine import process, services
from meshagent.machine.segments import segment
from meshagent.model.paths import Paths
from tests.agent.envoy.side import own_root
from tests.agent.envoy.test_looking import side_of
from tests.agent.envoy.test_process import echoed

pytestmark = pytest.mark.root


def test_an_envoy_of_somebody_else_that_the_record_names_is_neither_adopted_nor_ended(envoy: Path) -> None:
    """The same executable, the right start time: only the admin socket and the command line tell."""

    async def story(paths: Paths) -> None:
        argv = [envoy, "--config-yaml", "{}", "--base-id", "777001", "--log-level", "off"]
        theirs = subprocess.Popen(argv)  # noqa: ASYNC220 - it only has to be there
        side, server = await side_of(paths)
        try:
            handle = services.handle_of(theirs.pid)
            assert handle is not None
            for parent in (False, True):
                record = Record(handle, "1.40.0", 0, 1_234_567)
                Records(paths).save(record.relieved_by(handle, "1.40.0", 0.0) if parent else record)
                async with side.running():
                    state = await side.ready()
                    assert state.pid != theirs.pid and not state.adopted
                    assert await echoed() == b"hello"
                assert theirs.poll() is None
                side, _ = await side_of(paths)
        finally:
            theirs.kill()
            theirs.wait()
            segment(777001).unlink(missing_ok=True)
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def test_a_proxy_of_ours_that_is_not_on_record_is_ended_before_another_starts() -> None:
    """Its agent was killed between the start and the note about it."""

    async def story(paths: Paths) -> None:
        side, server = await side_of(paths)
        async with side.running():
            first = await side.ready()
        Records(paths).clear()
        again, other = await side_of(paths)
        async with again.running():
            second = await again.ready()
            assert process.start_time(first.pid) is None and second.pid != first.pid
            assert await echoed() == b"hello"
        server.close()
        other.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def test_what_killed_proxies_left_is_gone_before_the_next_one_starts() -> None:
    async def story(paths: Paths) -> None:
        side, server = await side_of(paths)
        paths.proxy_dir.mkdir(parents=True)
        stale = [paths.proxy_dir / "admin-7.sock", paths.proxy_dir / "hot_parent_70"]
        stale += [paths.run / "proxy-7.json", paths.run / "proxy-7-7.drain"]
        for path in stale:
            path.touch()
        number = Records(paths).base_id()
        segment(number).write_bytes(b"left by a crash")
        async with side.running():
            await side.ready()
            assert not [path for path in stale if path.exists()]
            assert segment(number).read_bytes()[:15] != b"left by a crash"
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def test_an_untested_envoy_is_refused_by_its_own_condition_that_names_range_and_setting(tmp_path: Path) -> None:
    old = tmp_path / "envoy"
    old.write_text("#!/bin/sh\necho 'envoy  version: a/1.20.0/Clean/RELEASE/BoringSSL'\n")
    old.chmod(0o755)

    async def story(paths: Paths) -> None:
        side, server = await side_of(paths)
        good, side.settings = side.settings, replace(side.settings, binary=str(old))
        async with side.running():
            text = await asyncio.wait_for(side.conditions.holding("envoy-version"), 20)
            assert "1.37 to 1.40" in text and 'proxy.allow_version: "1.20.0"' in text
            side.settings = good
            await side.ready()
            assert side.conditions.codes() == []
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))
