"""The watchable value: watchers see the newest, never wait for ever, never wake for nothing."""

import asyncio

import pytest

from meshagent.runtime.latest import Latest, any_newer, remembered


def test_a_watcher_gets_the_value_at_once_and_then_the_newest() -> None:
    async def watch() -> list[int]:
        value, seen = Latest(1), []
        async for each in value.watch():
            seen.append(each)
            if each == 4:
                return seen
            value.set(3)
            value.set(4)  # nobody looked in between: 3 is never seen
        return seen

    assert asyncio.run(watch()) == [1, 4]


def test_setting_an_equal_value_wakes_nobody() -> None:
    value = Latest((1, 2))
    value.set((1, 2))
    assert value.version == 0


def test_newer_returns_at_once_when_the_change_has_already_happened() -> None:
    async def late() -> str:
        value = Latest("old")
        version = value.version
        value.set("new")
        return await asyncio.wait_for(value.newer(version), 30)

    assert asyncio.run(late()) == "new"


def test_any_newer_wakes_for_whichever_changed_first() -> None:
    async def two() -> int:
        first, second = Latest(0), Latest(0)
        asyncio.get_running_loop().call_soon(second.set, 7)
        await asyncio.wait_for(any_newer((first, second), (first.version, second.version)), 30)
        return second.value

    assert asyncio.run(two()) == 7


def test_any_newer_gives_up_after_its_time() -> None:
    async def nothing() -> bool:
        value = Latest(0)
        await asyncio.wait_for(any_newer((value,), (value.version,), seconds=0.01), 30)
        return value.version == 0

    assert asyncio.run(nothing())


def test_what_is_remembered_is_computed_again_when_a_source_changed_and_never_when_it_failed() -> None:
    one, other, calls = Latest(1), Latest(2), []

    def add() -> float:
        calls.append((one.value, other.value))
        return one.value / other.value

    ask = remembered((one, other), add)
    assert [ask(), ask()] == [0.5, 0.5]
    other.set(0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            ask()
    other.set(4)
    assert [ask(), ask()] == [0.25, 0.25]
    assert calls == [(1, 2), (1, 0), (1, 0), (1, 4)]
