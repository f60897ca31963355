"""What this machine is and has, gathered once and handed to decisions as one frozen value."""

import ctypes
import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshagent.machine import process
from meshagent.model.address import IPAddress, parse_ip

_NAMESERVERS = 3  # MAXNS of resolv.conf(5): the C library reads no more


@dataclass(frozen=True, slots=True)
class Facts:
    """``kernel`` as uname -r, ``distro`` as PRETTY_NAME of os-release, ``init`` is ``systemd`` or ``none``.

    ``init`` is ``systemd`` only where systemd is PID 1 *and* this network namespace is PID 1's own: a namespace host
    would otherwise program the machine's units and resolver. ``nft``: libnftables can be loaded. ``boot_id`` changes
    with every boot.
    """

    kernel: str
    distro: str
    init: str
    nft: bool
    ipv6: bool
    nameservers: tuple[IPAddress, ...]
    boot_id: str
    uid: int

    @property
    def systemd(self) -> bool:
        return self.init == "systemd"


def gather(etc: Path = Path("/etc"), proc: Path = Path("/proc")) -> Facts:
    """Read the facts; what can't be read is empty or False, never an error."""
    return Facts(
        kernel=os.uname().release,
        distro=_os_release(_text(etc / "os-release")).get("PRETTY_NAME", "unknown Linux"),
        init=init_system(proc),
        nft=_loadable("libnftables.so.1"),
        ipv6=_ipv6(proc),
        nameservers=nameservers(_text(etc / "resolv.conf")),
        boot_id=_text(proc / "sys/kernel/random/boot_id").strip(),
        uid=os.geteuid(),
    )


def init_system(proc: Path = Path("/proc")) -> str:
    """``systemd`` where it is this host's own, else ``none`` (also when PID 1's namespace may not be looked at)."""
    own, first = process.namespace("self"), process.namespace(1)
    is_systemd = _text(proc / "1/comm").strip() == "systemd"
    return "systemd" if is_systemd and own is not None and own == first else "none"


def may_have(capability: int, proc: Path = Path("/proc")) -> bool:
    """Whether programs started from here can have a capability (by number, capabilities(7)); containers drop some."""
    lines = _text(proc / "self/status").splitlines()
    bounding = next((line.split()[1] for line in lines if line.startswith("CapBnd:")), "0")
    return bool(int(bounding, 16) >> capability & 1)


def nameservers(resolv_conf: str) -> tuple[IPAddress, ...]:
    """The addresses of resolv.conf(5)'s nameserver lines that the C library would use, in order."""
    found: list[IPAddress] = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            address = parse_ip(words[1].partition("%")[0])
            if address is not None and address not in found:
                found.append(address)
    return tuple(found[:_NAMESERVERS])


def _os_release(text: str) -> Mapping[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}


def _ipv6(proc: Path) -> bool:
    """True where an IPv6 socket can have an address: the family exists and is not switched off for all interfaces."""
    return (proc / "net/if_inet6").exists() and _text(proc / "sys/net/ipv6/conf/all/disable_ipv6").strip() != "1"


def ipv6_family() -> bool:
    """False where the kernel has no IPv6 at all (``ipv6.disable=1``); that changes with a boot only."""
    try:
        socket.socket(socket.AF_INET6).close()
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT
    return True


def _loadable(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
