"""Supervised tasks: one that fails comes back alone, and all end when told to."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from meshagent.runtime.tasks import Supervisor

Failures = list[tuple[str, str, float]]


def supervisor(failures: Failures, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> Supervisor:
    def note(name: str, error: Exception, retry_in: float) -> None:
        failures.append((name, str(error), retry_in))

    return Supervisor(note, rng=random.Random(1), first=0.001, limit=0.01, sleep=sleep)


def test_a_task_that_fails_runs_again_and_the_others_never_notice() -> None:
    async def scenario() -> None:
        failures: Failures = []
        recovered, runs = asyncio.Event(), 0

        async def shaky() -> None:
            nonlocal runs
            runs += 1
            if runs < 4:
                raise ValueError(f"run {runs}")
            recovered.set()
            await asyncio.Event().wait()

        async def steady() -> None:
            await asyncio.Event().wait()

        async with supervisor(failures) as tasks:
            tasks.start("steady", steady)
            tasks.start("shaky", shaky)
            await asyncio.wait_for(recovered.wait(), 30)
            assert tasks.running() == ["steady", "shaky"]
        assert [(name, text) for name, text, _ in failures] == [("shaky", f"run {run}") for run in (1, 2, 3)]
        assert tasks.running() == []

    asyncio.run(scenario())


def test_a_task_that_returns_is_done() -> None:
    async def scenario() -> None:
        failures: Failures = []
        ran = asyncio.Event()

        async def once() -> None:
            ran.set()

        async with supervisor(failures) as tasks:
            tasks.start("once", once)
            await ran.wait()
            await asyncio.sleep(0)
            assert tasks.running() == []
            tasks.start("once", once)
        assert failures == []

    asyncio.run(scenario())


def test_closing_lets_every_task_clean_up_last_started_first() -> None:
    async def scenario() -> list[str]:
        ended: list[str] = []

        def work(name: str) -> Callable[[], Awaitable[None]]:
            async def run() -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0)
                    ended.append(name)

            return run

        async with supervisor([]) as tasks:
            for name in ("a", "b", "c"):
                tasks.start(name, work(name))  # type: ignore[arg-type]
            await asyncio.sleep(0)
        return ended

    assert asyncio.run(scenario()) == ["c", "b", "a"]


def test_a_task_that_waits_to_run_again_can_be_stopped() -> None:
    async def scenario() -> None:
        waiting = asyncio.Event()

        async def forever(_: float) -> None:
            waiting.set()
            await asyncio.Event().wait()

        async def failing() -> None:
            raise ValueError("no")

        async with supervisor([], sleep=forever) as tasks:
            tasks.start("failing", failing)
            await waiting.wait()
            await asyncio.wait_for(tasks.stop("failing"), 30)
            await tasks.stop("failing")

    asyncio.run(scenario())


def test_a_name_runs_once() -> None:
    async def scenario() -> None:
        async def work() -> None:
            await asyncio.Event().wait()

        async with supervisor([]) as tasks:
            tasks.start("one", work)
            with pytest.raises(RuntimeError, match="one already runs"):
                tasks.start("one", work)

    asyncio.run(scenario())
