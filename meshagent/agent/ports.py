"""Ports that the mesh needs on a host, and who else stands on them. Pure, but for ``look``.

Envoy binds 15001 on loopback (what the kernel captures arrives there) and 15008 for peers, the agent's resolver 15053.
A stranger on one of them is named with pid and program: stopping the right thing is the operator's next step.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

from meshagent.machine import sockets
from meshagent.machine.sockets import Listener
from meshagent.model.address import IPAddress, parse_ip
from meshagent.model.errors import MeshagentError
from meshagent.model.ports import DNS, HBONE, OUTBOUND


@dataclass(frozen=True, slots=True)
class Need:
    """One socket of ours."""

    ip: IPAddress
    port: int
    udp: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """A socket of ours that can't be, and who stands there: ``pid`` 0 and empty ``program`` where that isn't known."""

    need: Need
    pid: int
    program: str

    @property
    def text(self) -> str:
        """``port 15001 on 127.0.0.1 is held by nginx (pid 4711)``."""
        who = f"{self.program} (pid {self.pid})" if self.pid else "a program that can't be seen from here"
        kind = "UDP port" if self.need.udp else "port"
        return f"{kind} {self.need.port} on {self.need.ip} is held by {who}"


def _needs() -> Iterable[Need]:
    for text, everywhere in (("127.0.0.1", "0.0.0.0"), ("::1", "::")):  # noqa: S104 - where peers come in
        loopback, wildcard = parse_ip(text), parse_ip(everywhere)
        assert loopback is not None and wildcard is not None
        yield Need(loopback, OUTBOUND)
        yield Need(wildcard, HBONE)
        yield Need(loopback, DNS)
        yield Need(loopback, DNS, udp=True)


NEEDS = tuple(_needs())


def look(own: frozenset[int]) -> tuple[Taken, ...]:
    """Who stands on our ports now, but for sockets of the user ids ``own`` (the proxy's) and of this process.

    Blocks for some milliseconds. Raises ``MeshagentError`` where sockets can't be listed.
    """
    tcp = sockets.on_ports({OUTBOUND, HBONE, DNS})
    udp = sockets.on_ports({DNS}, udp=True)
    return strangers(tcp, udp, own, os.getpid())


def strangers(tcp: Iterable[Listener], udp: Iterable[Listener], own: frozenset[int], me: int = 0) -> tuple[Taken, ...]:
    """Whose sockets keep which of our needs from being met; sockets of ``own`` users and of process ``me`` don't."""
    found = {False: tuple(tcp), True: tuple(udp)}
    taken: dict[Need, Taken] = {}
    for need in NEEDS:
        for listener in found[need.udp]:
            if listener.uid in own or (me and listener.pid == me) or not _collides(need, listener):
                continue
            taken.setdefault(need, Taken(need, listener.pid, listener.process))
    return tuple(taken.values())


def _collides(need: Need, listener: Listener) -> bool:
    """Linux: two sockets on one port exclude each other when their addresses are equal or one is the wildcard."""
    if listener.port != need.port or need.ip.version not in listener.families:
        return False
    return listener.wildcard or need.ip.is_unspecified or listener.ip == need.ip


def blocked_families(taken: Iterable[Taken]) -> frozenset[int]:
    """IP versions whose captured connections would reach a stranger."""
    return frozenset(each.need.ip.version for each in taken if each.need.port == OUTBOUND)


def on_port(taken: Iterable[Taken], port: int) -> tuple[Taken, ...]:
    """Those of one port."""
    return tuple(each for each in taken if each.need.port == port)


def require_free(own: frozenset[int] = frozenset()) -> None:
    """Before a host joins. Raises ``MeshagentError`` that names port, program and pid."""
    taken = look(own)
    if taken:
        raise MeshagentError(
            "port-taken",
            "; ".join(dict.fromkeys(each.text for each in taken)),
            hint="stop that program or move it to another port: nothing was changed on this host",
        )
