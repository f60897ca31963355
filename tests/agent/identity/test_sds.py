"""Envoy's certificates over SDS, with a real Envoy that serves TLS."""

import asyncio
import ssl

import pytest
from cryptography import x509
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext

from meshagent.agent.identity.sds import secrets
from meshagent.model.paths import Paths
from meshagent.protocol.types import LDS, SDS
from tests.agent.envoy.side import Side, own_root
from tests.agent.envoy.test_process import echo_config, echo_server
from tests.fakes.authority import Authority
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.envoy_resources import entry, tcp_listener
from tests.fakes.eventually import eventually
from tests.fakes.signed import fresh_identity


def test_both_secrets_change_version_only_with_their_own_public_part() -> None:
    authority = Authority()
    one, two = secrets(fresh_identity(authority))[SDS], secrets(fresh_identity(authority))[SDS]
    assert one["ROOTCA"] == two["ROOTCA"]
    assert one["default"].version != two["default"].version


def tls_listener(port: int) -> Listener:
    listener = tcp_listener("tls", port, "app")
    tls = DownstreamTlsContext()
    secret = tls.common_tls_context.tls_certificate_sds_secret_configs.add(name="default")
    source = secret.sds_config
    source.resource_api_version = 2
    source.api_config_source.api_type = 3  # DELTA_GRPC
    source.api_config_source.transport_api_version = 2
    source.api_config_source.grpc_services.add().envoy_grpc.cluster_name = "sds-grpc"
    roots = tls.common_tls_context.validation_context_sds_secret_config
    roots.name = "ROOTCA"
    roots.sds_config.CopyFrom(source)
    socket = listener.filter_chains[0].transport_socket
    socket.name = "envoy.transport_sockets.tls"
    socket.typed_config.Pack(tls)
    return listener


@pytest.mark.root
def test_a_rotation_reaches_new_handshakes_and_drops_no_connection() -> None:
    async def connect(side: Side) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        context = ssl.create_default_context(cadata=side.authority.root_pem)
        context.check_hostname = False  # the certificate carries a SPIFFE ID, no host name
        reader, writer = await asyncio.open_connection("127.0.0.1", 18443, ssl=context)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return reader, writer, format(x509.load_der_x509_certificate(der).serial_number, "x")

    async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"hello")
        return await reader.readexactly(5)

    async def story(paths: Paths) -> None:
        server = await echo_server()
        config = echo_config(server.sockets[0].getsockname()[1])
        plane = FakeControlPlane({**config, LDS: {"tls": entry(tls_listener(18443))}})
        async with Side(paths, plane).running() as side:
            await side.ready()
            reader, writer, serial = await connect(side)
            assert serial == side.identity.value.serial
            for _ in range(3):
                heard = side.sds.accepted.value
                side.identity.set(fresh_identity(side.authority))
                await eventually(lambda heard=heard: side.sds.accepted.value > heard)
                assert await exchange(reader, writer) == b"hello"
                other_reader, other_writer, serial = await connect(side)
                assert serial == side.identity.value.serial
                assert await exchange(other_reader, other_writer) == b"hello"
                other_writer.close()
            assert side.sds.refused.value == ""
            writer.close()
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))
