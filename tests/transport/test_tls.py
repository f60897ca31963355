"""A host looks at its hub before it says anything: what it accepts, what it refuses, and that it stays silent."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from meshagent.model.address import HostPort
from meshagent.model.errors import MeshagentError
from meshagent.protocol.enrol import spki_hash
from meshagent.transport.listener import server_context
from meshagent.transport.tls import PinnedHub, check_chain, peer_chain, pinned_hub
from tests.fakes.authority import DAY, Authority

MESH = Authority()
STRANGER = Authority()


def pin(authority: Authority) -> str:
    return spki_hash(authority.root.public_bytes(Encoding.DER))


def chain(chain_pem: str) -> list[bytes]:
    blocks = chain_pem.split("-----BEGIN CERTIFICATE-----")[1:]
    return [ssl.PEM_cert_to_DER_cert("-----BEGIN CERTIFICATE-----" + block) for block in blocks]


class Server:
    """A TLS server for one connection that notes every byte of application data it gets."""

    def __init__(self, chain_pem: str, key_pem: bytes, roots_pem: str, host: str = "127.0.0.1") -> None:
        self.received: bytes | None = None
        self._context = server_context(chain_pem=chain_pem, key_pem=key_pem, roots_pem=roots_pem)
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.address = HostPort(*self._listener.getsockname()[:2])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        raw, _ = self._listener.accept()
        with contextlib.suppress(ssl.SSLError), self._context.wrap_socket(raw, server_side=True) as connection:
            self.received = b""
            connection.settimeout(5)
            while data := connection.recv(4_096):
                self.received += data

    def finish(self) -> bytes | None:
        self._thread.join(5)
        self._listener.close()
        return self.received


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, HostPort]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener, HostPort(*listener.getsockname())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_right_hub_is_accepted_and_named_by_its_trust_domain(host: str) -> None:
    server = Server(*MESH.hub(), MESH.root_pem, host)
    assert pinned_hub(server.address, pin(MESH), 5) == PinnedHub(MESH.root_pem, "hub.mesh.internal", "mesh.internal")
    assert server.finish() == b""


def test_a_hub_may_be_given_by_name() -> None:
    server = Server(*MESH.hub(), MESH.root_pem)
    assert pinned_hub(HostPort("localhost", server.address.port), pin(MESH), 5).trust_domain == "mesh.internal"
    server.finish()


def test_a_wrong_ca_gets_a_handshake_and_not_one_byte_of_application_data() -> None:
    server = Server(*STRANGER.hub(), STRANGER.root_pem)
    with pytest.raises(MeshagentError) as caught:
        pinned_hub(server.address, pin(MESH), 5)
    assert (caught.value.code, int(caught.value.exit_code)) == ("wrong-ca", 1)
    assert server.finish() == b""


def test_a_stranger_who_appends_the_true_root_is_not_believed() -> None:
    leaf_pem = STRANGER.hub()[0].removesuffix(STRANGER.root_pem)
    with pytest.raises(MeshagentError, match="not issued by its root"):
        check_chain(chain(leaf_pem + MESH.root_pem), pin(MESH), datetime.now(UTC))


def test_an_enrolled_host_cannot_pose_as_the_hub() -> None:
    workload = MESH.identity().chain_pem + MESH.root_pem
    with pytest.raises(MeshagentError) as caught:
        check_chain(chain(workload), pin(MESH), datetime.now(UTC))
    assert caught.value.code == "hub-wrong-name"


@pytest.mark.parametrize(("shift", "word"), [(timedelta(days=9), "expired"), (timedelta(days=-9), "not valid yet")])
def test_a_certificate_out_of_its_time_points_to_the_clock(shift: timedelta, word: str) -> None:
    with pytest.raises(MeshagentError, match=word) as caught:
        check_chain(chain(MESH.hub()[0]), pin(MESH), datetime.now(UTC) + shift)
    assert caught.value.code == "hub-clock"
    assert "clock" in caught.value.hint


def test_a_pinned_certificate_that_is_no_authority_is_refused() -> None:
    no_ca = Authority(ca=False)
    with pytest.raises(MeshagentError) as caught:
        check_chain(chain(no_ca.hub()[0]), pin(no_ca), datetime.now(UTC))
    assert caught.value.code == "hub-not-ca"


def test_a_chain_without_anything_below_the_root_or_with_nothing_at_all_is_refused() -> None:
    for certificates in ([], chain(MESH.root_pem), [b"garbage"], chain(MESH.hub()[0])[:1]):
        with pytest.raises(MeshagentError):
            check_chain(certificates, pin(MESH), datetime.now(UTC))


def test_a_hub_certificate_for_another_name_is_refused() -> None:
    with pytest.raises(MeshagentError) as caught:
        check_chain(chain(MESH.hub(name="hub.elsewhere")[0]), pin(MESH), datetime.now(UTC))
    assert caught.value.code == "hub-wrong-name"


def test_an_expired_leaf_below_a_valid_root_is_refused() -> None:
    with pytest.raises(MeshagentError) as caught:
        check_chain(chain(MESH.hub(valid_from=-3 * DAY, valid_for=DAY)[0]), pin(MESH), datetime.now(UTC))
    assert caught.value.code == "hub-clock"


def test_a_port_nobody_listens_on_is_unreachable() -> None:
    with listening() as (_, address):
        pass
    with pytest.raises(MeshagentError) as caught:
        peer_chain(address, 2)
    assert caught.value.code == "hub-unreachable"


def test_a_name_that_does_not_exist_is_unreachable() -> None:
    with pytest.raises(MeshagentError) as caught:
        peer_chain(HostPort("no-such-host.invalid", 1), 2)
    assert caught.value.code == "hub-unreachable"


def test_a_server_that_never_answers_ends_in_a_timeout() -> None:
    with listening() as (_, address), pytest.raises(MeshagentError) as caught:
        peer_chain(address, 0.2)
    assert caught.value.code == "hub-unreachable"


def test_a_server_without_tls_is_named_so() -> None:
    with listening() as (listener, address):

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4_096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(MeshagentError) as caught:
            peer_chain(address, 5)
        thread.join(5)
    assert caught.value.code == "hub-no-tls"
