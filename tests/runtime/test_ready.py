"""Readiness is every gate open at once, and the closed ones have names."""

import asyncio

import pytest

from meshagent.runtime.ready import Ready


def test_ready_when_every_gate_is_open_whatever_the_order() -> None:
    ready = Ready("store", "ads")
    ready.add("ca")
    ready.add("ads")
    for gate, waiting in (("ads", ("store", "ca")), ("ca", ("store",)), ("store", ())):
        assert not ready.ready
        ready.open(gate)
        assert ready.waiting.value == waiting
    assert ready.ready
    ready.close("ca")
    assert ready.waiting.value == ("ca",)


def test_waiting_ends_with_the_last_gate() -> None:
    async def scenario() -> None:
        ready = Ready("one", "two")
        waiter = asyncio.create_task(ready.wait())
        ready.open("one")
        await asyncio.sleep(0)
        assert not waiter.done()
        ready.open("two")
        await asyncio.wait_for(waiter, 30)

    asyncio.run(scenario())


def test_a_gate_nobody_added_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(KeyError, match="no gate 'adz', only ads"):
        Ready("ads").open("adz")
