"""Draining lets what is under way finish, refuses what is new, and keeps its deadline."""

import asyncio

import pytest

from meshagent.runtime.drain import Drain


def test_work_under_way_finishes_and_new_work_is_refused() -> None:
    async def scenario() -> None:
        drain, proceed = Drain(), asyncio.Event()

        async def piece() -> bool:
            with drain.work() as admitted:
                if admitted:
                    await proceed.wait()
                return admitted

        first = asyncio.create_task(piece())
        await asyncio.sleep(0)
        finishing = asyncio.create_task(drain.finish(deadline=5))
        await asyncio.wait_for(drain.begun(), 30)
        assert drain.under_way == 1
        assert not await piece()
        proceed.set()
        assert await finishing == 0
        assert await first

    asyncio.run(scenario())


def test_the_deadline_ends_the_wait_and_tells_how_many_are_left() -> None:
    async def scenario() -> int:
        drain = Drain()
        with drain.work(), drain.work():
            return await drain.finish(deadline=0.01)

    assert asyncio.run(scenario()) == 2


def test_work_that_fails_counts_as_finished() -> None:
    async def scenario() -> int:
        drain = Drain()
        with pytest.raises(ValueError, match="no"), drain.work():
            raise ValueError("no")
        return await drain.finish(deadline=0)

    assert asyncio.run(scenario()) == 0
