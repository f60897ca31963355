"""Hands Envoy its key, chain and roots over a Unix socket (SDS), and again whenever they change.

Names are Istio's: ``default`` (key and chain) and ``ROOTCA`` (what to judge peers by). Both are taken from one
``Identity``, so Envoy never gets a key of one rotation with the chain of another. Connections that are open stay open:
Envoy uses the new secret for new handshakes.
"""

import asyncio
import contextlib
import hashlib
from pathlib import Path

from envoy.config.core.v3.base_pb2 import Node
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from meshagent.model.identity import Identity
from meshagent.protocol.entry import Entry, Snapshot
from meshagent.protocol.publisher import Verdict
from meshagent.protocol.types import SDS
from meshagent.runtime.latest import Latest
from meshagent.transport.ads_server import AdsServer, Ending, end_streams
from meshagent.transport.grpc_server import Call, add_methods, bind_unix, local_peer, new_server
from meshagent.transport.methods import DELTA_SECRETS
from meshagent.transport.unix import Access, remove

CERTIFICATE = "default"
ROOTS = "ROOTCA"


def secrets(identity: Identity) -> Snapshot:
    """Both secrets as resources. Versions are hashes of the public parts only."""
    certificate, roots = Secret(name=CERTIFICATE), Secret(name=ROOTS)
    certificate.tls_certificate.certificate_chain.inline_string = identity.chain_pem
    certificate.tls_certificate.private_key.inline_bytes = identity.key_pem
    roots.validation_context.trusted_ca.inline_string = identity.bundle_pem
    return {
        SDS: {
            CERTIFICATE: Entry(_version(identity.chain_pem), certificate.SerializeToString()),
            ROOTS: Entry(_version(identity.bundle_pem), roots.SerializeToString()),
        }
    }


class _SecretStream:
    """One stream of Envoy (``transport.ads_server.AdsSession``); it opens one per secret."""

    def __init__(self, snapshot: Latest[Snapshot], server: "SdsServer") -> None:
        self.snapshot = snapshot
        self.ended: Latest[Ending | None] = Latest(None)
        self._server = server

    def on_verdict(self, verdict: Verdict) -> None:
        self._server.heard(verdict)

    def on_subscription(self, type_url: str, wildcard: bool, names: frozenset[str]) -> None:
        """Whatever is asked for, there are only two."""

    async def close(self) -> None:
        """The server need not end it any more."""
        self._server.closed(self)


class SdsServer:
    """Serves an identity on ``socket`` (0660, root and the proxy's group).

    ``accepted`` counts responses that Envoy ACKed; ``refused`` is its last reason, '' when it took the last one.
    """

    def __init__(self, socket: Path, gid: int | None = None) -> None:
        self.accepted: Latest[int] = Latest(0)
        self.refused: Latest[str] = Latest("")
        self._snapshot: Latest[Snapshot] = Latest({})
        self._socket = socket
        self._access = Access(mode=0o660, uid=None if gid is None else 0, gid=gid)
        self._server = new_server()
        self._streams: set[_SecretStream] = set()
        self._placed: tuple[int, int] | None = None
        self._following: asyncio.Task[None] | None = None

    def bind(self) -> None:
        """From here on Envoy may connect, and is answered once this is started.

        Raises ``MeshagentError`` ``already-running`` when another agent serves this root.
        """
        add_methods(self._server, AdsServer(self._open).handlers(DELTA_SECRETS), local_peer)
        self._placed = bind_unix(self._server, self._socket, self._access)

    async def start(self, identity: Latest[Identity]) -> None:
        """Answer with ``identity``, and whenever that changes. Raises as ``bind``, unless that was called before."""
        if self._placed is None:
            self.bind()
        self._snapshot.set(secrets(identity.value))
        await self._server.start()
        self._following = asyncio.create_task(self._follow(identity))

    async def stop(self) -> None:
        """Envoy keeps what it has."""
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
        end_streams(self._streams)
        await self._server.stop(grace=1.0)
        remove(self._socket, self._placed)

    def closed(self, stream: _SecretStream) -> None:
        """That stream is over."""
        self._streams.discard(stream)

    def heard(self, verdict: Verdict) -> None:
        """Envoy's word on one response. Its reason is not logged: it may quote the secret."""
        self.refused.set("refused by Envoy" if verdict.error else "")
        if not verdict.error:
            self.accepted.set(self.accepted.value + 1)

    async def _follow(self, identity: Latest[Identity]) -> None:
        async for newest in identity.watch():
            self._snapshot.set(secrets(newest))

    async def _open(self, node: Node, call: Call) -> _SecretStream:
        del node, call
        stream = _SecretStream(self._snapshot, self)
        self._streams.add(stream)
        return stream


def _version(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
