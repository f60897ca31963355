"""A server that stops while calls run: the event loop may end right after it, and nobody says anything."""

import asyncio
from typing import Any

import pytest
import structlog
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse

from meshagent.transport.channel import delta_ads_stream
from meshagent.transport.grpc_server import Call, Stream
from meshagent.transport.methods import DELTA_ADS
from tests.transport.mesh import hub


def test_stop_returns_when_the_calls_it_cancelled_have_ended(capfd: pytest.CaptureFixture[str]) -> None:
    """Else the loop's end cancels gRPC's task around the call, and that prints a traceback."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def serve(context: Any, call: Call) -> None:
        del context, call
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.3)  # what it has to put away takes longer than the server's stop
            ended.set()

    async def scenario() -> bool:
        async with hub([Stream(DELTA_ADS, serve)]) as running, running.channel() as channel:
            stream = delta_ads_stream(channel)
            asking = asyncio.ensure_future(stream.read())
            async with asyncio.timeout(60):
                await begun.wait()
            await running.server.stop(0)
            asking.cancel()
            return ended.is_set()

    assert asyncio.run(scenario())
    assert "Traceback" not in capfd.readouterr().err


def test_a_call_that_still_speaks_when_its_server_has_stopped_is_no_failure(capfd: pytest.CaptureFixture[str]) -> None:
    begun, spoken = asyncio.Event(), asyncio.Event()

    async def serve(context: Any, call: Call) -> None:
        del call
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.3)  # the server stops meanwhile
            spoken.set()
            await context.write(DeltaDiscoveryResponse(type_url="t"))

    async def scenario() -> None:
        async with hub([Stream(DELTA_ADS, serve)]) as running, running.channel() as channel:
            stream = delta_ads_stream(channel)
            asking = asyncio.ensure_future(stream.read())
            async with asyncio.timeout(60):
                await begun.wait()
            await running.server.stop(0)
            asking.cancel()

    with structlog.testing.capture_logs() as said:
        asyncio.run(scenario())
    assert spoken.is_set()
    assert [line for line in said if line["log_level"] in ("warning", "error")] == []
    assert "Traceback" not in capfd.readouterr().err
