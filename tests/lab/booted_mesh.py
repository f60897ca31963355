"""Booted hosts in a mesh: joined by the command line, asked by their own programs."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from meshagent.lab import wait_until
from meshagent.lab.waiting import NotInTimeError
from tests.lab.booted import BootedHost, booted
from tests.lab.downloads import DEBIAN12, Download
from tests.lab.mesh import Connecting, Mesh, took

CACHE = "cache.default.mesh.internal"


@contextmanager
def joined(
    mesh: Mesh, name: str, config: str = "", files: Mapping[str, str] | None = None, root: Download = DEBIAN12
) -> Iterator[BootedHost]:
    """In the mesh and capturing; ``config`` is its agent.yaml. Leaves the mesh at the end."""
    with booted(
        mesh.lab, name, {**(files or {}), "etc/meshagent/agent.yaml": config or "# as it comes\n"}, root
    ) as host:
        host.meshagent(*mesh.token(host.name))
        wait_until(lambda: reaches(mesh, host), 20, "the first answer through the mesh")
        yield host
        host.meshagent("leave", "--drain", "1", "--purge")


def address(mesh: Mesh, host: BootedHost, name: str = CACHE) -> str:
    """The virtual address of a service, as the host's own resolver says it; empty while there is none."""
    return next(iter(mesh.resolve(host, name)), "")


def reaches(mesh: Mesh, host: BootedHost) -> bool:
    """By name, through the proxy."""
    found = address(mesh, host)
    if not found:
        return False
    with host.connect(found, 6379) as client:
        client.sendall(b"PING\r\n")
        return client.recv(64) == b"+PONG\r\n"


def settled(mesh: Mesh, host: BootedHost) -> bool:
    """Nothing to complain of, and nothing under way in the kernel: what is read now will stay."""
    return mesh.conditions(host) == [] and bool(mesh.status(host)["capture"]["in_sync"])


def connecting(mesh: Mesh, host: BootedHost) -> Connecting:
    """New connections through the mesh, one after the other."""
    return Connecting(host, address(mesh, host))


def kernel(host: BootedHost) -> str:
    """All that is ours in the kernel, without what was dialled in the last seconds."""
    commands = (
        "nft -s list table inet meshagent; nft -s list table inet meshagent_anchor",
        "ip -N route show proto 109; ip -N route show table 28001",
        # One that went and came back stands behind the others of its priority; they are for different marks.
        "ip -N rule show | grep 109 | sort; ip -6 -N rule show | sort",
    )
    listed = host.run(["sh", "-c", "; ".join(commands)], check=False).stdout
    return _DIALLED.sub(lambda found: found["kept"], listed)


#: A set whose elements live for five seconds.
_DIALLED = re.compile(r"(?P<kept>\tset dialled[46] \{[^}]*?)\n\t\telements = \{[^}]*\}")


def _sorted(text: str) -> list[str]:
    """Lines, each set and chain in its place by name: one that went and came back stands last in its table."""
    return "\n".join(sorted(re.split(r"^(?=\t(?:set|map|chain|})|})", text, flags=re.MULTILINE))).splitlines()


def back_in_a_second(mesh: Mesh, host: BootedHost, *steps: Callable[[], object]) -> None:
    """After most of the steps: a machine that is busy with other things may once take longer."""
    wait_until(lambda: settled(mesh, host), 20, "a host that is well")
    wanted, waits = _sorted(kernel(host)), []

    def back() -> bool:
        missing = list(difflib.unified_diff(wanted, _sorted(kernel(host)), "before", "now", lineterm="", n=0))
        if missing:
            raise NotInTimeError("not-back", "\n".join(missing))
        return True

    for step in steps:
        step()
        waits.append(took(lambda: wait_until(back, 20, "rules and routes are back")))
        wait_until(
            lambda: reaches(mesh, host), 20, "an answer: resolved, too, may just have lost and found its servers"
        )
    assert sorted(waits)[len(waits) // 2] < 1, waits
