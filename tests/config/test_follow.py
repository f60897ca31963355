import asyncio
from pathlib import Path

import pytest

from meshagent.config.follow import FollowedConfig
from meshagent.config.tree import ConfigError
from meshagent.model.posture import Posture
from tests.agent.recorder import Recorder


def test_a_good_edit_is_taken_a_bad_one_is_named_and_the_last_good_one_stays(tmp_path: Path) -> None:
    async def story() -> None:
        path, conditions = tmp_path / "agent.yaml", Recorder()
        followed = FollowedConfig(path, conditions)
        assert (await followed.start()).posture is Posture.PERMISSIVE
        running = asyncio.create_task(followed.run(interval=0.01))
        async with asyncio.timeout(20):
            path.write_text("posture: strict\n")
            assert (await followed.config.newer(followed.config.version)).posture is Posture.STRICT
            path.write_text("posture: nothing\n")
            assert "agent.yaml:1: posture" in await conditions.holding("config-file-invalid")
            assert followed.config.value.posture is Posture.STRICT
            path.unlink()
            assert (await followed.config.newer(followed.config.version)).posture is Posture.PERMISSIVE
            assert conditions.held == {}
        running.cancel()

    asyncio.run(story())


def test_five_mistakes_are_all_named_and_what_is_beyond_is_counted(tmp_path: Path) -> None:
    async def told(words: str) -> str:
        path, conditions = tmp_path / "agent.yaml", Recorder()
        path.unlink(missing_ok=True)
        followed = FollowedConfig(path, conditions)
        await followed.start()
        path.write_text("".join(f"{word}: 1\n" for word in words.split()))
        await followed.refresh()
        return str(await conditions.holding("config-file-invalid"))

    text = asyncio.run(told("red green blue pink grey"))
    assert all(f"agent.yaml:{line}: " in text for line in range(1, 6)), text
    assert "more" not in text
    assert asyncio.run(told("red green blue pink grey black white")).endswith("and 2 more")


def test_a_daemon_does_not_start_on_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "agent.yaml").write_text("posture: [\n")
    with pytest.raises(ConfigError):
        asyncio.run(FollowedConfig(tmp_path / "agent.yaml", Recorder()).start())
