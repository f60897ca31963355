"""A binary that was replaced on disk while the old one runs."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from meshagent.model.paths import Paths
from tests.agent.envoy.side import Side, own_root
from tests.agent.envoy.test_looking import side_of
from tests.fakes.eventually import eventually


@pytest.mark.root
def test_a_changed_binary_is_told_about_not_taken_and_a_hot_restart_takes_it(
    envoy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshagent.agent.envoy.process.UPGRADE_LOOK", 0.1)
    installed = tmp_path / "envoy"
    shutil.copy(envoy, installed)

    async def story(side: Side) -> None:
        side.settings = replace(side.settings, binary=str(installed))
        async with side.running():
            first = await side.ready()
            await asyncio.sleep(1.2)  # ten looks pass, and an unchanged binary is told about by none
            assert side.conditions.codes() == []
            shutil.copy(envoy, tmp_path / "new")
            (tmp_path / "new").rename(installed)
            text = await asyncio.wait_for(side.conditions.holding("proxy-upgrade-available"), 10)
            assert "1.40.0" in text and side.proxy.state.value.upgrade == "1.40.0"
            assert side.proxy.state.value.pid == first.pid
            second = await side.proxy.restart()
            await eventually(lambda: side.conditions.codes() == [])
            assert second.pid != first.pid

    async def whole(paths: Paths) -> None:
        side, server = await side_of(paths)
        await story(side)
        server.close()

    with own_root() as paths:
        asyncio.run(whole(paths))
