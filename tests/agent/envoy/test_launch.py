"""One started Envoy, as the kernel sees it."""

import asyncio
import resource
from pathlib import Path

import pytest

from meshagent.agent.envoy import binary
from meshagent.agent.envoy.bootstrap import ProxyNode
from meshagent.agent.envoy.launch import MAX_LOG, Launcher
from meshagent.machine import services
from meshagent.machine.segments import segment
from tests.agent.envoy.side import USER, own_root


@pytest.mark.root
def test_envoy_runs_as_its_own_user_with_one_capability_and_nothing_in_its_argv_but_paths(envoy: Path) -> None:
    with own_root() as paths:
        launcher = Launcher(paths, USER, ProxyNode("n", "c"))
        handle = launcher.start(binary.examine(envoy), 0, 2_000_000)
        try:
            text = Path(f"/proc/{handle.pid}/status").read_text()
            limits = Path(f"/proc/{handle.pid}/limits").read_text()
            argv = Path(f"/proc/{handle.pid}/cmdline").read_text().split("\0")
        finally:
            asyncio.run(services.stop_async(handle))
            segment(2_000_000).unlink(missing_ok=True)
        status = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        assert status["Uid"].split() == ["61001"] * 4
        assert status["Gid"].split() == ["61001"] * 4
        assert status["Groups"].split() == []
        assert int(status["CapEff"], 16) == 1 << 12  # CAP_NET_ADMIN
        assert int(status["CapBnd"], 16) == 1 << 12
        assert status["NoNewPrivs"].strip() == "1"
        soft, hard = next(line for line in limits.splitlines() if "open files" in line).split()[3:5]
        assert soft == hard == str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        assert "--concurrency" in argv
        assert (paths.run / "proxy-0.json").stat().st_mode & 0o777 == 0o640
        assert paths.proxy_dir.stat().st_uid == 61001
        assert paths.proxy_dir.stat().st_mode & 0o777 == 0o700
        assert launcher.log.stat().st_uid == 0


@pytest.mark.root
def test_a_log_that_has_grown_is_cut_to_its_last_part() -> None:
    with own_root() as paths:
        launcher = Launcher(paths, USER, ProxyNode("n", "c"))
        paths.run.mkdir(parents=True)
        launcher.log.write_bytes(b"old\n" * MAX_LOG + b"newest\n")
        launcher.bound_log()
        assert launcher.log.stat().st_size < MAX_LOG
        assert launcher.log.read_bytes().endswith(b"newest\n")
