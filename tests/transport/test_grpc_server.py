"""Clients that go away at the worst moment."""

import asyncio
from typing import Any

import grpc.aio
import pytest
import structlog
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from meshagent.transport.channel import MAX_MESSAGE, delta_ads_stream
from meshagent.transport.grpc_server import Call, Stream
from meshagent.transport.methods import DELTA_ADS
from tests.transport.mesh import hub


def test_a_client_that_goes_in_the_middle_of_an_answer_is_no_failure_of_the_server() -> None:
    """This one hangs up because the answer is bigger than it takes; a crash in the middle of one looks the same."""

    async def scenario() -> None:
        ended = asyncio.Event()

        async def serve(context: Any, call: Call) -> None:
            del call
            await context.read()
            response = DeltaDiscoveryResponse(type_url="t", nonce="1")
            response.resources.add(name="big").resource.value = bytes(MAX_MESSAGE + 1)
            try:
                await context.write(response)
            finally:
                ended.set()

        async with hub([Stream(DELTA_ADS, serve)]) as running, running.channel() as channel:
            stream = delta_ads_stream(channel)
            await stream.write(DeltaDiscoveryRequest(type_url="t"))
            with pytest.raises(grpc.aio.AioRpcError, match="larger than max"):
                await stream.read()
            async with asyncio.timeout(60):
                await ended.wait()

    with structlog.testing.capture_logs() as said:
        asyncio.run(scenario())
    assert [line for line in said if line["log_level"] in ("warning", "error")] == []
