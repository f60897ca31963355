"""What was captured before this agent started stays captured until somebody says otherwise.

An agent that starts knows less than the kernel: its cache is written behind, or was lost, and the control plane answers
only after a moment. What the last agent asked to capture is therefore kept in a file beside the guard's socket, and as
long as that guard still holds rules, it counts as well: addresses until the control plane has spoken of listeners and
Envoy has an opinion on each, port policy until the control plane has spoken of it. Nothing is ever captured by this
that was not captured before, and nothing at all of a family whose port for captured connections a stranger holds.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import structlog

from meshagent.agent.ports import Taken, blocked_families
from meshagent.agent.relay.taps import Taps
from meshagent.guard.client import GuardClient
from meshagent.machine import state
from meshagent.model.address import MeshAddress, parse_ip
from meshagent.model.doors import PORT_DOORS, Door, OpenDoor, PortDoor
from meshagent.model.errors import MeshagentError
from meshagent.model.policy import HostPolicy, RedirectReason
from meshagent.model.posture import PlaintextMode, stricter
from meshagent.protocol.types import HOST_POLICY, LDS
from meshagent.runtime.latest import Latest, any_newer

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Captured:
    """What one agent asks to capture; ``unserved``: what it can't, for want of a port of the proxy's own."""

    mesh: frozenset[MeshAddress] = frozenset()
    policy: HostPolicy = field(default_factory=HostPolicy)
    doors: frozenset[OpenDoor] = frozenset()
    unserved: frozenset[MeshAddress] = frozenset()
    ports: frozenset[PortDoor] = frozenset()


class Kept:
    """``mesh``, ``unserved``, ``policy``, ``doors`` and ``ports`` are what capture follows.

    ``shut``: IP versions for which the proxy is known to have no port where captured connections could arrive.
    ``settled``: types on which the hub has spoken.
    """

    def __init__(
        self,
        path: Path,
        guard: GuardClient,
        taps: Taps,
        settled: Latest[frozenset[str]],
        taken: Latest[tuple[Taken, ...]],
    ) -> None:
        self.mesh: Latest[frozenset[MeshAddress]] = Latest(frozenset())
        self.unserved: Latest[frozenset[MeshAddress]] = Latest(frozenset())
        self.shut: Latest[frozenset[int]] = Latest(frozenset())
        self.policy: Latest[HostPolicy] = Latest(HostPolicy())
        self.doors: Latest[frozenset[OpenDoor]] = Latest(frozenset())
        self.ports: Latest[frozenset[PortDoor]] = Latest(frozenset())
        self._path, self._guard, self._taps, self._settled, self.taken = path, guard, taps, settled, taken
        self._before = Captured()

    async def start(self) -> None:
        """Look once what is captured; before the first rules are decided."""
        self._before = await asyncio.to_thread(self._look)
        self.refresh()

    async def run(self) -> None:
        """Follow until cancelled."""
        taps = self._taps
        listened = (taps.addresses, taps.unserved, taps.doors, taps.ports)
        followed = (*listened, taps.policy, self._settled, self.taken)
        while True:
            versions = [value.version for value in followed]
            self.refresh()
            await asyncio.to_thread(self._remember, self._now())
            await any_newer(followed, versions)

    def refresh(self) -> None:
        """Recompute now."""
        settled = self._settled.value
        before = Captured() if LDS in settled else self._before
        blocked = blocked_families(self.taken.value)
        mesh, doors = self._taps.addresses.value | before.mesh, self._taps.doors.value | before.doors
        served = frozenset(address for address in mesh if address.ip.version not in blocked)
        self.unserved.set((mesh | self._taps.unserved.value | before.unserved) - served)
        self.shut.set(blocked | {address.ip.version for address in self.unserved.value})
        self.mesh.set(served)
        self.doors.set(frozenset(door for door in doors if door[1] not in blocked))
        ports = _newest(self._taps.ports.value, before.ports)
        self.ports.set(frozenset(port for port in ports if port.family not in blocked))
        policy = self._taps.policy.value
        self.policy.set(policy if HOST_POLICY in settled else both(policy, self._before.policy))

    def _now(self) -> Captured:
        doors, unserved = self.doors.value, self.unserved.value
        return Captured(self.mesh.value, self.policy.value, doors, unserved, self.ports.value)

    def _look(self) -> Captured:
        try:
            return decode(state.read_state(self._path).data or {}) if self._guard.state()["installed"] else Captured()
        except MeshagentError as error:  # the capture controller says so
            log.warning("what was captured before is not known", code=error.code, error=error.message)
            return Captured()

    def _remember(self, now: Captured) -> None:
        try:
            state.write_state(self._path, encode(now))
        except MeshagentError as error:
            log.warning("what is captured could not be written down", code=error.code, error=error.message)


def _newest(now: frozenset[PortDoor], before: frozenset[PortDoor]) -> frozenset[PortDoor]:
    """What the proxy has, and for ports of which nothing is known yet what it had."""
    known = {(each.door, each.family, each.port) for each in now}
    return now | {each for each in before if (each.door, each.family, each.port) not in known}


def both(one: HostPolicy, other: HostPolicy) -> HostPolicy:
    """Where two opinions on a port differ, the stricter; and every redirect of either."""
    merged = dict(other.plaintext)
    for port, mode in one.plaintext.items():
        merged[port] = stricter(mode, merged.get(port, mode))
    return HostPolicy(merged, {**other.redirect, **one.redirect})


def encode(captured: Captured) -> dict[str, list[str]]:
    """JSON values: ``240.240.0.5 6379``, ``6379 strict``, ``6379 mutual-tls``, ``outbound 4`` and
    ``ports-tproxy 4 6379 plain`` (or ``closed``)."""
    return {
        "mesh": sorted(f"{address.ip} {address.port}" for address in captured.mesh),
        "unserved": sorted(f"{address.ip} {address.port}" for address in captured.unserved),
        "policy": sorted(f"{port} {mode.value}" for port, mode in captured.policy.plaintext.items()),
        "redirect": sorted(f"{port} {reason.value}" for port, reason in captured.policy.redirect.items()),
        "ports": sorted(
            f"{each.door.value} {each.family} {each.port} {'plain' if each.plain else 'closed'}"
            for each in captured.ports
        ),
        "doors": sorted(f"{door.value} {version}" for door, version in captured.doors),
    }


def decode(data: dict[str, list[str]]) -> Captured:
    """The inverse; what can't be read is left out."""
    return Captured(
        frozenset(_addresses(data.get("mesh", ()))),
        HostPolicy(
            dict(_numbered(data.get("policy", ()), PlaintextMode)),
            dict(_numbered(data.get("redirect", ()), RedirectReason)),
        ),
        frozenset(_doors(data.get("doors", ()))),
        frozenset(_addresses(data.get("unserved", ()))),
        frozenset(_ports(data.get("ports", ()))),
    )


def _addresses(lines: Iterable[str]) -> Iterable[MeshAddress]:
    for line in lines:
        text, _, port = str(line).partition(" ")
        ip = parse_ip(text)
        if ip is not None and port.isascii() and port.isdigit() and 1 <= int(port) <= 65535:
            yield MeshAddress(ip, int(port))


_Value = TypeVar("_Value", bound=StrEnum)


def _numbered(lines: Iterable[str], kind: type[_Value]) -> Iterable[tuple[int, _Value]]:
    known = {value.value: value for value in kind}
    for line in lines:
        port, _, text = str(line).partition(" ")
        if port.isascii() and port.isdigit() and text in known:
            yield int(port), known[text]


def _ports(lines: Iterable[str]) -> Iterable[PortDoor]:
    doors = {door.value: door for door in PORT_DOORS}
    for line in lines:
        door, family, port, rest = (*str(line).split(" "), "", "", "")[:4]
        if door in doors and family in ("4", "6") and port.isascii() and port.isdigit() and rest in ("plain", "closed"):
            yield PortDoor(doors[door], int(family), int(port), rest == "plain")


def _doors(lines: Iterable[str]) -> Iterable[OpenDoor]:
    known = {f"{door.value} {version}": (door, version) for door in Door for version in (4, 6)}
    return (known[line] for line in lines if line in known)
