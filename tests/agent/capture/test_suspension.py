"""The wish to capture nothing: kept in a file, heard whoever wrote it."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from meshagent.agent.capture.suspension import Suspension, resume, suspend, suspended_since
from meshagent.machine.state import read_state
from meshagent.model.errors import MeshagentError
from tests.agent.capture.test_controller import Conditions

NOW = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
LATER = datetime(2026, 5, 2, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "capture-off.json"


def test_off_is_kept_with_its_time_and_on_takes_it_back(path: Path) -> None:
    assert suspended_since(path) is None
    assert suspend(path, NOW) == NOW
    assert suspend(path, LATER) == NOW
    assert suspended_since(path) == NOW
    assert read_state(path).format == 1
    assert resume(path)
    assert not resume(path)
    assert suspended_since(path) is None


@pytest.mark.parametrize("content", ["", "{", '{"format": 1, "sha256": "x", "data": {}}', "\0" * 100])
def test_a_damaged_file_still_means_off_until_a_person_says_on(path: Path, content: str) -> None:
    path.write_text(content)
    assert suspended_since(path) is not None
    assert path.exists()
    assert resume(path)
    assert suspended_since(path) is None


def test_a_file_of_a_newer_version_means_off(path: Path) -> None:
    suspend(path, NOW)
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    assert suspended_since(path) is not None


def test_status_says_since_when_and_how_to_go_on_only_while_it_is_off(path: Path) -> None:
    conditions = Conditions()
    suspension = Suspension(path, conditions)

    async def story() -> None:
        assert await suspension.suspend(NOW)
        assert not await suspension.suspend(LATER)
        assert suspension.suspended.value and suspension.since == NOW
        assert conditions.now == {"capture-suspended": "since 2026-05-01 12:30 UTC"}
        assert await suspension.resume()
        assert not suspension.suspended.value and suspension.since is None and conditions.now == {}

    asyncio.run(story())


def test_what_the_command_line_wrote_while_the_agent_hung_is_heard(path: Path) -> None:
    async def story() -> None:
        suspension = Suspension(path, Conditions())
        following = asyncio.create_task(suspension.run(interval=0.01))
        await until(suspension, lambda: suspend(path, NOW), True)
        await until(suspension, lambda: resume(path), False)
        following.cancel()

    asyncio.run(story())


async def until(suspension: Suspension, act: Callable[[], object], wanted: bool) -> None:
    act()
    async with asyncio.timeout(30):
        async for value in suspension.suspended.watch():
            if value is wanted:
                return


def test_where_the_wish_cannot_be_written_nothing_changes_and_the_error_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    suspension = Suspension(tmp_path / "file" / "capture-off.json", Conditions())
    with pytest.raises(MeshagentError):
        asyncio.run(suspension.suspend(NOW))
    assert not suspension.suspended.value
