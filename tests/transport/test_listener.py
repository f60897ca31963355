"""The hub's TLS front with a real gRPC client and server: who is known, who is refused, what it withstands."""

import asyncio
import socket
import ssl
import time
from datetime import timedelta

import grpc
import grpc.aio
import pytest

from meshagent.model.address import HostPort
from meshagent.model.errors import MeshagentError
from meshagent.protocol.pb.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshagent.transport.channel import create_certificate_call, hub_channel
from meshagent.transport.front_limits import Limits
from meshagent.transport.grpc_server import Call, Unary, local_peer
from meshagent.transport.listener import TlsFront, server_context
from meshagent.transport.methods import CREATE_CERTIFICATE
from tests.fakes.authority import DAY, Authority
from tests.ports import free_port
from tests.transport.mesh import Hub, hub


async def whoami(request: IstioCertificateRequest, call: Call) -> IstioCertificateResponse:
    """Says who the front saw; pads the answer to ``validity_duration`` bytes."""
    who = [call.peer.address, call.peer.serial, *call.peer.uris]
    return IstioCertificateResponse(cert_chain=[*who, "x" * request.validity_duration])


HANDLERS = [Unary(CREATE_CERTIFICATE, whoami)]


async def ask(channel: grpc.aio.Channel, pad: int = 0, csr: str = "") -> list[str]:
    request = IstioCertificateRequest(validity_duration=pad, csr=csr)
    answer = await create_certificate_call(channel, request, timeout=10)
    return list(answer.cert_chain)[:-1]


def test_a_client_without_a_certificate_is_served_and_known_only_by_its_address() -> None:
    async def scenario() -> list[str]:
        async with hub(HANDLERS) as running, running.channel() as channel:
            return await ask(channel)

    assert asyncio.run(scenario()) == ["127.0.0.1", ""]


def test_a_client_with_a_certificate_is_known_by_serial_and_spiffe_id_over_ipv4_and_ipv6() -> None:
    async def scenario() -> None:
        async with hub(HANDLERS, v6=True) as running:
            for index, address in enumerate(("127.0.0.1", "::1")):
                identity = running.authority.identity("cache", serial=0xABC0 + index)
                async with running.channel(identity, index) as channel:
                    spiffe = "spiffe://mesh.internal/ns/default/sa/cache"
                    assert await ask(channel) == [address, f"abc{index}", spiffe] and identity.serial == f"abc{index}"

    asyncio.run(scenario())


def test_many_clients_at_once_are_never_taken_for_one_another() -> None:
    async def one(running: Hub, serial: int) -> None:
        identity = running.authority.identity("web", serial=serial)
        for _ in range(3):
            async with running.channel(identity) as channel:
                assert (await ask(channel))[1] == identity.serial

    async def scenario() -> None:
        async with hub(HANDLERS) as running:
            await asyncio.gather(*(one(running, 1_000 + i) for i in range(20)))

    asyncio.run(scenario())


def test_a_certificate_of_another_authority_is_refused_in_the_handshake() -> None:
    async def scenario() -> grpc.StatusCode:
        async with hub(HANDLERS) as running, running.channel(Authority().identity()) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(channel)
            return caught.value.code()

    assert asyncio.run(scenario()) is grpc.StatusCode.UNAVAILABLE


def test_an_expired_client_is_refused_and_one_from_the_future_is_let_in() -> None:
    """The front issued both; "not valid yet" means that its own clock went back."""

    async def scenario() -> None:
        async with hub(HANDLERS) as running:
            async with running.channel(running.authority.identity(valid_for=DAY - timedelta(seconds=2))) as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    await ask(channel)
            early = running.authority.identity(valid_from=DAY)
            async with running.channel(early) as channel:
                assert (await ask(channel))[1] == early.serial

    asyncio.run(scenario())


def test_a_client_refuses_a_front_of_another_authority_or_name() -> None:
    async def scenario() -> None:
        async with hub(HANDLERS) as running:
            for wrong in ({"roots_pem": Authority().root_pem}, {"server_name": "hub.elsewhere"}):
                async with running.channel(**wrong) as channel:
                    with pytest.raises(grpc.aio.AioRpcError):
                        await ask(channel)

    asyncio.run(scenario())


def test_a_loopback_connection_past_the_front_is_refused() -> None:
    async def scenario() -> grpc.aio.AioRpcError:
        async with hub(HANDLERS) as running:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{running.grpc_port}")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(channel)
            await channel.close()
            return caught.value

    assert asyncio.run(scenario()).code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_rotated_certificate_counts_for_new_connections_and_keeps_open_ones() -> None:
    async def scenario() -> None:
        async with hub(HANDLERS) as running, running.channel() as before:
            await ask(before)
            renewed = Authority()
            chain_pem, key_pem = renewed.hub()
            running.context = server_context(chain_pem=chain_pem, key_pem=key_pem, roots_pem=renewed.root_pem)
            async with running.channel(renewed.identity("db"), roots_pem=renewed.root_pem) as after:
                assert (await ask(after))[2] == "spiffe://mesh.internal/ns/default/sa/db"
            assert (await ask(before))[1] == ""

    asyncio.run(scenario())


def test_garbage_and_silence_cost_their_own_connection_only() -> None:
    async def scenario() -> None:
        async with hub(HANDLERS, Limits(handshake_timeout=0.3)) as running:
            port = running.front.addresses[0].port
            silent = await asyncio.open_connection("127.0.0.1", port)
            for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(500), bytes(70_000)):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(data)
                writer.write_eof()
                await asyncio.wait_for(reader.read(), 30)
                writer.close()
            async with running.channel() as channel:
                await ask(channel)
            assert await asyncio.wait_for(silent[0].read(), 30) == b""
            silent[1].close()

    asyncio.run(scenario())


def test_a_client_that_speaks_no_http2_is_closed() -> None:
    async def scenario() -> bytes:
        async with hub(HANDLERS) as running:
            context = ssl.create_default_context(cadata=running.authority.root_pem)
            port = running.front.addresses[0].port
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, server_hostname="hub.mesh.internal"
            )
            try:
                return await asyncio.wait_for(reader.read(), 30)
            finally:
                writer.close()

    assert asyncio.run(scenario()) == b""


def test_more_connections_than_allowed_are_closed() -> None:
    async def scenario() -> None:
        async with hub(HANDLERS, Limits(connections=1)) as running, running.channel() as first:
            await ask(first)
            async with running.channel() as second:
                with pytest.raises(grpc.aio.AioRpcError):
                    await ask(second)
            await ask(first)

    asyncio.run(scenario())


def test_a_fleet_that_comes_at_once_is_let_in_one_after_the_other() -> None:
    async def scenario() -> None:
        async with hub(HANDLERS, Limits(pending=4)) as running:
            address = ("127.0.0.1", running.front.addresses[0].port)
            context = ssl.create_default_context(cadata=running.authority.root_pem)
            context.set_alpn_protocols(["h2"])
            waiting = [socket.create_connection(address) for _ in range(60)]  # all in the kernel's queue
            opening = (
                asyncio.open_connection(sock=each, ssl=context, server_hostname="hub.mesh.internal") for each in waiting
            )
            opened = await asyncio.wait_for(asyncio.gather(*opening), 60)
            async with running.channel() as channel:
                await ask(channel)
            assert not any(reader.at_eof() for reader, _ in opened)
            for _, writer in opened:
                writer.close()

    asyncio.run(scenario())


def test_strangers_that_begin_a_handshake_and_say_nothing_hold_nobody_up_for_long() -> None:
    async def scenario() -> None:
        async with hub(HANDLERS, Limits(pending=2, handshake_timeout=60)) as running:
            port = running.front.addresses[0].port
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for _ in range(5):  # refused: they may ask elsewhere
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                assert await asyncio.wait_for(reader.read(), 10) == b""
                writer.close()
            silent[0][1].close()
            async with running.channel() as channel:
                await ask(channel)
            silent[1][1].close()

    asyncio.run(scenario())


def test_big_messages_pass_in_both_directions_quickly() -> None:
    async def scenario() -> float:
        async with hub(HANDLERS) as running, running.channel() as channel:
            begin = time.monotonic()
            for _ in range(4):
                await ask(channel, pad=12 << 20, csr="y" * (7 << 20))
            return time.monotonic() - begin

    assert asyncio.run(scenario()) < 20  # 76 MiB; about 1 s on an idle core


def test_a_closed_connection_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        async with hub(HANDLERS) as running:
            async with running.channel() as channel:
                await ask(channel)
                assert running.front.connections == 1
            deadline = time.monotonic() + 5
            while running.front.connections:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_a_taken_port_is_named_and_nothing_stays_open() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            front = TlsFront([HostPort("::1", 0), HostPort("127.0.0.1", port)], _no_context, 1)
            with pytest.raises(MeshagentError) as caught:
                await front.start()
        assert (caught.value.code, front.addresses) == ("port-taken", [])
        assert str(port) in caught.value.message

    asyncio.run(scenario())


def _no_context() -> ssl.SSLContext:
    raise AssertionError


def test_a_front_whose_server_is_gone_closes_the_client() -> None:
    async def scenario() -> None:
        authority = Authority()
        chain_pem, key_pem = authority.hub()
        context = server_context(chain_pem=chain_pem, key_pem=key_pem, roots_pem=authority.root_pem)
        front = TlsFront([HostPort("127.0.0.1", 0)], lambda: context, free_port())
        await front.start()
        channel = hub_channel(front.addresses[0], roots_pem=authority.root_pem, server_name="hub.mesh.internal")
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(channel)
        assert front.connections <= 1
        await channel.close()
        await front.close()

    asyncio.run(scenario())


def test_the_peer_of_a_unix_socket_has_no_certificate() -> None:
    assert (local_peer("unix:").address, local_peer("unix:").serial) == ("unix", "")
