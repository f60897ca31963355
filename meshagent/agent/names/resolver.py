"""How this host resolves names: which nameservers resolv.conf names, and how a query should reach the agent.

Reading is one small file, deciding is a pure function with a table of cases in its test. resolv.conf is followed when
it changes (also when the symbolic link is swapped) and never edited.

Where it names systemd-resolved's stub, resolved's own nameservers are meant instead: programs ask resolved (by the stub
or, with libnss-resolve, without any packet), resolved asks them, and there its queries are captured. Capturing the stub
would miss libnss-resolve; asking it would be a loop, for what it doesn't know it asks where we capture.
"""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from meshagent.config.settings import DnsMode
from meshagent.model.address import IPAddress, parse_ip
from meshagent.model.posture import Posture
from meshagent.runtime.latest import Latest

#: glibc asks at most three (resolv.h MAXNS), and 127.0.0.1 where the file names none (resolv.conf(5)).
MAX_NAMESERVERS = 3
_DEFAULT_NAMESERVERS = ("127.0.0.1",)

#: The nameservers that systemd-resolved asks, written by itself (systemd-resolved.service(8)).
UPLINKS = Path("/run/systemd/resolve/resolv.conf")

#: Where systemd-resolved's stub and its proxy-only stub listen (systemd-resolved.service(8)).
RESOLVED_STUBS = frozenset({"127.0.0.53", "127.0.0.54"})

_MAX_BYTES = 64 << 10
_POLL_SECONDS = 1.0  # one stat a second: a lease that changes the resolver takes effect within it


@dataclass(frozen=True, slots=True)
class Nameserver:
    """One nameserver; ``scope`` is the interface of a link-local IPv6 address, else empty."""

    ip: IPAddress
    scope: str = ""

    def __str__(self) -> str:
        return f"{self.ip}%{self.scope}" if self.scope else str(self.ip)


@dataclass(frozen=True, slots=True)
class ResolvConf:
    """What of resolv.conf(5) concerns a forwarder; ``exists`` tells an empty file from none."""

    nameservers: tuple[Nameserver, ...] = ()
    search: tuple[str, ...] = ()
    rotate: bool = False
    exists: bool = True


@dataclass(frozen=True, slots=True)
class ResolverFacts:
    """The world as the decision sees it. ``resolved``: systemd-resolved runs for *this* network namespace."""

    conf: ResolvConf
    resolved: bool = False


@dataclass(frozen=True, slots=True)
class DnsPlan:
    """How names reach the agent: ``mode`` is never ``auto``.

    ``capture``: nameservers whose port 53 is to be redirected to us; ``upstreams``: where foreign names are asked.
    """

    mode: DnsMode
    upstreams: tuple[Nameserver, ...] = ()
    capture: tuple[IPAddress, ...] = ()
    rotate: bool = False
    reason: str = ""


def parse_resolv_conf(text: str) -> ResolvConf:
    """resolv.conf(5): the first three nameservers, the last ``search`` or ``domain``, ``options rotate``."""
    servers: list[Nameserver] = []
    search: tuple[str, ...] = ()
    rotate = False
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        match words[0]:
            case "nameserver" if (server := _nameserver(words[1])) and server not in servers:
                servers.append(server)
            case "search" | "domain":
                search = tuple(words[1:])
            case "options":
                rotate = rotate or "rotate" in words[1:]
    return ResolvConf(tuple(servers[:MAX_NAMESERVERS]), search, rotate)


def _nameserver(text: str) -> Nameserver | None:
    address, _, scope = text.partition("%")
    ip = parse_ip(address)
    return None if ip is None or ip.is_unspecified or ip.is_multicast else Nameserver(ip, scope)


def decide(
    wanted: DnsMode,
    posture: Posture,
    facts: ResolverFacts,
    *,
    own: Collection[Nameserver] = (),
    able: Collection[DnsMode] = (DnsMode.CAPTURE,),
) -> DnsPlan:
    """The plan for this host. ``own``: nameserver lines that are ours (never asked, never captured); ``able``: modes
    this version can do. What resolv.conf names decides, not which daemon runs.
    """
    servers = tuple(server for server in _effective(facts.conf) if server not in own)
    mode, reason = _mode(wanted, posture, facts, servers)
    if mode is not DnsMode.OFF and mode not in able:
        mode, reason = DnsMode.CAPTURE, f"{mode} is not in this version: port 53 is captured instead"
    capture = tuple(dict.fromkeys(server.ip for server in servers)) if mode is DnsMode.CAPTURE else ()
    return DnsPlan(mode, servers, capture, facts.conf.rotate, reason)


def _effective(conf: ResolvConf) -> tuple[Nameserver, ...]:
    if conf.nameservers:
        return conf.nameservers
    return tuple(Nameserver(ip) for ip in map(parse_ip, _DEFAULT_NAMESERVERS) if ip)


def _mode(
    wanted: DnsMode, posture: Posture, facts: ResolverFacts, servers: tuple[Nameserver, ...]
) -> tuple[DnsMode, str]:
    if wanted is DnsMode.OFF:
        return DnsMode.OFF, "switched off by dns.mode"
    if not posture.captures_outbound:
        return DnsMode.OFF, f"posture {posture} captures nothing"
    if wanted is not DnsMode.AUTO:
        return wanted, "set by dns.mode"
    if facts.resolved and servers and all(str(server.ip) in RESOLVED_STUBS for server in servers):
        return DnsMode.RESOLVED, "resolv.conf names systemd-resolved's stub"
    return DnsMode.CAPTURE, "resolv.conf names " + ", ".join(map(str, servers)) if servers else "no other nameserver"


def behind_the_stub(conf: ResolvConf, uplinks: ResolvConf) -> ResolvConf:
    """``conf`` with the nameservers that systemd-resolved asks in the place of its stub; without any, as it is."""
    others = tuple(server for server in conf.nameservers if str(server.ip) not in RESOLVED_STUBS)
    if others == conf.nameservers or not uplinks.nameservers:
        return conf
    return replace(conf, nameservers=tuple(dict.fromkeys((*uplinks.nameservers, *others))))


def read_resolv_conf(path: Path = Path("/etc/resolv.conf"), uplinks: Path = UPLINKS) -> ResolvConf:
    """The file as it is now, looking behind a stub; a missing or unreadable one reads as absent."""
    return behind_the_stub(_read(path), _read(uplinks))


def _read(path: Path) -> ResolvConf:
    try:
        with path.open("rb") as file:
            return parse_resolv_conf(file.read(_MAX_BYTES).decode("utf-8", "replace"))
    except OSError:
        return ResolvConf(exists=False)


async def follow(
    conf: Latest[ResolvConf],
    path: Path = Path("/etc/resolv.conf"),
    interval: float = _POLL_SECONDS,
    uplinks: Path = UPLINKS,
) -> None:
    """Publish resolv.conf whenever it changed, until cancelled. A file that vanished for a moment (a client that
    replaces it in two steps) keeps the last nameservers.
    """
    seen: object = None
    while True:
        now = _signature(path), _signature(uplinks)
        if now != seen:
            seen = now
            read = read_resolv_conf(path, uplinks)
            if read.exists or conf.version == 0:
                conf.set(read)
        await asyncio.sleep(interval)


def _signature(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


#: How other parts ask for the nameservers of the moment.
Upstreams = Callable[[], DnsPlan]
