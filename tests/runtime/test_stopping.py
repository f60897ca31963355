"""A daemon hears SIGTERM and SIGINT and ends by itself."""

import asyncio
import os
import signal

import pytest

from meshagent.runtime.stopping import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_event_and_the_loop_goes_on(number: signal.Signals) -> None:
    async def daemon() -> str:
        stop = stop_on_signals()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stop.wait(), 30)
        return "ended in order"

    assert asyncio.run(daemon()) == "ended in order"
