"""The watchable value: watchers see the newest, never wait for ever, never wake for nothing."""

import asyncio

from meshagent.runtime.latest import Latest, any_newer


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
