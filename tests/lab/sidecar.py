"""Istio's sidecar in miniature: mutual TLS of the mesh on the service's own port, told by ALPN and SNI.

Keys are those of a host that has joined, so identities are real ones.
"""

import contextlib
import select
import socket
import ssl
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meshagent.agent.identity.keystore import Keystore
from meshagent.lab import Host

#: What Istio's client offers for TCP. Our side must not take the first: its own frames would follow.
ALPN = ("istio-peer-exchange", "istio")


def pem(host: Host) -> tuple[str, str]:
    """Key with chain, and bundle, as the agent keeps them."""
    found = Keystore(host.root / "var/lib/meshagent").load_identity()
    assert found is not None
    return found.key_pem.decode() + found.chain_pem, found.bundle_pem


def client_context(keys_of: Host | None, alpn: Sequence[str] = ALPN) -> ssl.SSLContext:
    """Without ``keys_of`` it has no certificate, and trusts whom it calls."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False  # identities are URIs
    made.verify_mode = ssl.CERT_REQUIRED if keys_of else ssl.CERT_NONE
    if alpn:
        made.set_alpn_protocols(list(alpn))
    if keys_of:
        _load(made, keys_of)
    return made


def _load(context: ssl.SSLContext, keys_of: Host) -> None:
    mine, bundle = pem(keys_of)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(mine)
        file.flush()
        context.load_cert_chain(file.name)
    context.load_verify_locations(cadata=bundle)


def handshake(caller: Host, address: str, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection from ``caller`` after its side of the handshake. Raises ``OSError``."""
    plain = caller.connect(address, port, timeout=20)
    try:
        return context.wrap_socket(plain, server_hostname="outbound_.1_._.service.mesh.internal")
    except BaseException:
        plain.close()
        raise


class CallerSidecar:
    """What a program on ``caller`` sends to local port ``listen`` goes to ``address`` and ``port`` as its sidecar would
    send it."""

    def __init__(self, caller: Host, address: str, port: int, listen: int) -> None:
        self._caller, self._where, self._context = caller, (address, port), client_context(caller)
        self._listener = caller.listen(listen, "127.0.0.1")
        _serve_each(self._listener, self._one)

    def close(self) -> None:
        _end(self._listener)

    def _one(self, local: socket.socket) -> None:
        with handshake(self._caller, *self._where, self._context) as remote:
            assert remote.selected_alpn_protocol() == "istio"
            while True:
                ready = [remote] if remote.pending() else select.select([local, remote], [], [])[0]
                if local in ready and not _pass(local, remote):
                    return
                if remote in ready and not _pass(remote, local):
                    return


def _pass(source: socket.socket, target: socket.socket) -> bool:
    """False at the end. A TLS socket may be readable without a byte for us (session tickets)."""
    source.setblocking(False)
    try:
        data = source.recv(65536)
    except ssl.SSLWantReadError:
        return True
    finally:
        source.setblocking(True)
    target.sendall(data)
    return bool(data)


@dataclass(frozen=True)
class Seen:
    """What a sidecar learns of a connection."""

    caller: str
    alpn: str | None
    sni: str


class ServerSidecar:
    """Stands before a service that answers each line with itself, in capitals; ``seen`` are its connections."""

    def __init__(self, host: Host, port: int, keys_of: Host) -> None:
        self.seen: list[Seen] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.set_alpn_protocols(["istio-peer-exchange", "istio"])
        self._names = threading.local()
        self._context.sni_callback = self._note
        _load(self._context, keys_of)
        self._listener = host.listen(port)
        _serve_each(self._listener, self._one)

    def close(self) -> None:
        _end(self._listener)

    def _note(self, _socket: object, name: str | None, _context: object) -> None:
        self._names.sni = name or ""

    def _one(self, plain: socket.socket) -> None:
        with self._context.wrap_socket(plain, server_side=True) as secure:
            certificate: Any = secure.getpeercert()
            (uri,) = (value for kind, value in certificate["subjectAltName"] if kind == "URI")
            self.seen.append(Seen(uri, secure.selected_alpn_protocol(), self._names.sni))
            with secure.makefile("rwb") as lines:
                for line in lines:
                    lines.write(line.upper())
                    lines.flush()


def _serve_each(listener: socket.socket, one: Any) -> None:
    def each(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            one(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=each, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _end(listener: socket.socket) -> None:
    """A thread that waits in accept() is woken by this, not by close()."""
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
