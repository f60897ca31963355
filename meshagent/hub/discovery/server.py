"""Sessions of the hub's ADS: who calls decides whose snapshot it gets.

The certificate's serial number names the enrolled host (injected look-up); what the node says of itself must agree
with it. So a host can only ever see its own configuration, whatever it claims.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
import structlog
from envoy.config.core.v3.base_pb2 import Node

from meshagent.hub.discovery.fanout import Fanout, Feed
from meshagent.hub.discovery.rejections import Rejections
from meshagent.hub.store.trouble import StoreError
from meshagent.model.errors import MeshagentError
from meshagent.protocol.entry import Snapshot
from meshagent.protocol.node import metadata_text, parse_node_id
from meshagent.protocol.publisher import Verdict
from meshagent.runtime.clock import Clock
from meshagent.runtime.latest import Latest
from meshagent.transport.ads_server import Ending
from meshagent.transport.grpc_server import Call, RefusedCallError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Caller:
    """The enrolled host behind a certificate."""

    host_name: str
    namespace: str
    service_account: str


#: Certificate serial (lower-case hex) -> the host it was issued to; raises ``MeshagentError`` when there is none.
CallerOf = Callable[[str], Awaitable[Caller]]


class Discovery:
    """The session factory for ``transport.ads_server.AdsServer``: ``AdsServer(Discovery(…).open)``."""

    def __init__(self, fanout: Fanout, caller_of: CallerOf, rejections: Rejections, clock: Clock) -> None:
        self._fanout = fanout
        self._caller_of = caller_of
        self._rejections = rejections
        self._clock = clock

    async def open(self, node: Node, call: Call) -> "HostSession":
        """A session for the calling host; raises ``RefusedCallError``: UNAUTHENTICATED or PERMISSION_DENIED."""
        caller = await self._caller(call)
        problem = disagreement(node, caller)
        if problem:
            log.warning("discovery refused", host=caller.host_name, problem=problem)
            raise RefusedCallError(grpc.StatusCode.PERMISSION_DENIED, "wrong-node", problem)
        self._rejections.forget(caller.host_name)  # a new stream is asked everything anew
        return HostSession(caller.host_name, self._fanout, self._rejections, self._clock)

    async def _caller(self, call: Call) -> Caller:
        if not call.peer.serial:
            raise RefusedCallError(
                grpc.StatusCode.UNAUTHENTICATED, "no-certificate", "discovery needs the host's certificate"
            )
        try:
            return await self._caller_of(call.peer.serial)
        except RefusedCallError:
            raise
        except StoreError as error:  # not the host's fault: it keeps what it has and asks again
            raise RefusedCallError(grpc.StatusCode.UNAVAILABLE, error.code, error.message) from None
        except MeshagentError as error:
            raise RefusedCallError(grpc.StatusCode.PERMISSION_DENIED, error.code, error.message) from None


def disagreement(node: Node, caller: Caller) -> str:
    """What the node says of itself that its certificate does not bear out; empty when they agree."""
    try:
        node_id = parse_node_id(node.id)
    except MeshagentError as error:
        return error.message
    said = {
        "name": node_id.name,
        "namespace": node_id.namespace,
        "NAMESPACE": metadata_text(node, "NAMESPACE"),
        "SERVICE_ACCOUNT": metadata_text(node, "SERVICE_ACCOUNT"),
    }
    proven = {
        "name": caller.host_name,
        "namespace": caller.namespace,
        "NAMESPACE": caller.namespace,
        "SERVICE_ACCOUNT": caller.service_account,
    }
    for key in said:
        if said[key] != proven[key]:
            return f"the node says {key} {said[key][:100]!r}, the certificate belongs to {proven[key]!r}"
    return ""


class HostSession:
    """One stream of one host, as ``transport.ads_server`` wants it."""

    def __init__(self, host_name: str, fanout: Fanout, rejections: Rejections, clock: Clock) -> None:
        self.host_name = host_name
        self._fanout = fanout
        self._rejections = rejections
        self._clock = clock
        self._feed: Feed = fanout.open(host_name)
        self._ended: Latest[Ending | None] = Latest(None)
        self._watching: asyncio.Future[None] | None = asyncio.ensure_future(self._end_when_removed())
        log.info("discovery opened", host=host_name)

    @property
    def snapshot(self) -> Latest[Snapshot]:
        return self._feed.snapshot

    @property
    def ended(self) -> Latest[Ending | None]:
        return self._ended

    def on_verdict(self, verdict: Verdict) -> None:
        """Remember refusals, so that ``hub hosts`` can name them; the client keeps what it had before."""
        for refused in self._rejections.heard(self.host_name, verdict, self._clock.now()):
            log.warning("resource refused", host=self.host_name, kind=refused.kind, resource=refused.resource)

    def on_subscription(self, type_url: str, wildcard: bool, names: frozenset[str]) -> None:
        """Nothing depends on it: everything a host may ask for is in its snapshot already."""

    async def close(self) -> None:
        """Give the feed back.

        The cancelled task holds this session by its traceback: held in turn, both would stay, with all the host was
        told, until the collector looks through everything.
        """
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
        self._fanout.close(self.host_name)
        log.info("discovery closed", host=self.host_name)

    async def _end_when_removed(self) -> None:
        async for removed in self._feed.removed.watch():
            if removed:
                self._ended.set((grpc.StatusCode.PERMISSION_DENIED, "this host is not enrolled any more"))
                return
