"""Clients that go away at the worst moment, and many that come at once."""

import asyncio
import time
from contextlib import ExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from meshagent.protocol.pb.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshagent.transport.channel import MAX_MESSAGE, delta_ads_stream
from meshagent.transport.grpc_server import Call, Stream, Unary, add_methods, bind_loopback, local_peer, new_server
from meshagent.transport.methods import CREATE_CERTIFICATE, DELTA_ADS, serialize
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


def test_calls_of_a_whole_fleet_wait_for_their_turn_and_none_is_cancelled() -> None:
    """The event loop is busy while they come in; from 1,000 that wait gRPC's own default is to cancel some."""
    many, each = 50, 60

    async def serve(request: Any, call: Call) -> IstioCertificateResponse:
        del request, call
        return IstioCertificateResponse(cert_chain=["served"])

    async def scenario() -> None:
        server = new_server()
        add_methods(server, [Unary(CREATE_CERTIFICATE, serve)], local_peer)
        target = f"127.0.0.1:{bind_loopback(server)}"
        await server.start()
        with ExitStack() as stack:
            calls = []
            for _ in range(many):
                channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
                method = stack.enter_context(channel).unary_unary(CREATE_CERTIFICATE.path, request_serializer=serialize)
                calls += [method.future(IstioCertificateRequest(), timeout=120) for _ in range(each)]
            time.sleep(2)  # noqa: ASYNC251 - the loop is busy
            answers = await asyncio.gather(*(asyncio.to_thread(call.exception) for call in calls))
            assert [error for error in answers if error is not None] == []
        await server.stop(0)

    asyncio.run(scenario())
