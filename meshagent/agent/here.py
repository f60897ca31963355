"""What this host is, followed while the agent runs: addresses, gateways, nameservers, ports of logins, the hub.

Read at once and again when the kernel says that addresses or routes changed, when resolv.conf changed, and every five
seconds for what nobody announces (an sshd that moved to another port, a session that came in).
"""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

from meshagent.agent.capture.intent import HostFacts
from meshagent.agent.capture.usable import usable_backends
from meshagent.agent.names.resolver import ResolvConf, follow, read_resolv_conf
from meshagent.machine import facts as machine_facts
from meshagent.machine import netlink
from meshagent.machine.login import LoginLook
from meshagent.model.address import HostPort, IPAddress, parse_ip
from meshagent.runtime.latest import Latest

#: A look at a machine of 250 processes takes 5 ms of CPU time.
_RECHECK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Read:
    """One look at the machine."""

    own: frozenset[IPAddress] = frozenset()
    addresses: tuple[IPAddress, ...] = ()
    gateways: frozenset[IPAddress] = frozenset()
    sshd_ports: frozenset[int] = frozenset()
    session_ports: frozenset[int] = frozenset()
    hub: frozenset[IPAddress] = frozenset()


class Here:
    """``addresses`` preferred first (the one towards the hub), ``facts`` what capture must know."""

    def __init__(self, hubs: Sequence[HostPort], proxy_uid: int, advertise: Sequence[IPAddress] = ()) -> None:
        self._hubs = tuple(hubs)
        self._advertise = tuple(advertise)
        self._hub_known: frozenset[IPAddress] = frozenset()
        self._logins = LoginLook()
        self.conf: Latest[ResolvConf] = Latest(ResolvConf(exists=False))
        self.addresses: Latest[tuple[IPAddress, ...]] = Latest(())
        here, (nft, iptables) = machine_facts.gather(), usable_backends()
        self.boot_id = here.boot_id
        self.facts: Latest[HostFacts] = Latest(
            HostFacts(proxy_uid=proxy_uid, ipv6_usable=here.ipv6, nft_usable=nft, iptables_usable=iptables)
        )

    async def start(self) -> None:
        """The first look. Raises ``MeshagentError`` when the machine can't be read."""
        self._take(await asyncio.to_thread(self._read))
        self._take_conf(read_resolv_conf())

    async def run(self) -> None:
        """Follow until cancelled."""
        changed = asyncio.Event()
        tasks = [
            asyncio.create_task(follow(self.conf)),
            asyncio.create_task(self._on_resolver()),
            asyncio.create_task(_ring(changed)),
        ]
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), _RECHECK_SECONDS)
                changed.clear()
                self._take(await asyncio.to_thread(self._read))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _on_resolver(self) -> None:
        async for conf in self.conf.watch():
            self._take_conf(conf)

    def _take_conf(self, conf: ResolvConf) -> None:
        self.conf.set(conf)
        nameservers = tuple(server.ip for server in conf.nameservers)
        self.facts.set(replace(self.facts.value, nameservers=nameservers))

    def _read(self) -> _Read:
        self._hub_known = resolve_hubs(self._hubs) or self._hub_known
        own = frozenset(address.ip for address in netlink.addresses())
        logins = self._logins.look(own)
        return _Read(
            own=own,
            addresses=self._advertise or _preferred_first(self._hub_known),
            gateways=frozenset(netlink.gateways()),
            sshd_ports=logins.servers,
            session_ports=logins.sessions,
            hub=self._hub_known,
        )

    def _take(self, read: _Read) -> None:
        self.addresses.set(read.addresses)
        self.facts.set(
            replace(
                self.facts.value,
                own_addresses=read.own,
                gateways=read.gateways,
                sshd_ports=read.sshd_ports,
                session_ports=read.session_ports,
                hub_addresses=read.hub,
            )
        )


async def _ring(changed: asyncio.Event) -> None:
    async for _ in netlink.changes():
        changed.set()


def _preferred_first(hubs: frozenset[IPAddress]) -> tuple[IPAddress, ...]:
    known = [address.ip for address in netlink.addresses()]
    preferred = {source for hub in hubs if (source := netlink.preferred_source(hub))}
    return tuple(sorted(dict.fromkeys(known), key=lambda ip: ip not in preferred))


def resolve_hubs(hubs: Sequence[HostPort]) -> frozenset[IPAddress]:
    """Addresses of the hubs; a name that doesn't resolve now leaves them as they were known."""
    found: set[IPAddress] = set()
    for hub in hubs:
        literal = parse_ip(hub.host)
        if literal is not None:
            found.add(literal)
            continue
        with contextlib.suppress(OSError, UnicodeError):
            for entry in socket.getaddrinfo(hub.host, hub.port, type=socket.SOCK_STREAM):
                ip = parse_ip(str(entry[4][0]))
                if ip is not None:
                    found.add(ip)
    return frozenset(found)
