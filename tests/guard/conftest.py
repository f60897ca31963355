"""A lab host with a guard and a ruleset that is small enough to read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from meshagent.guard.client import GuardClient, command
from meshagent.guard.state import Gate, Ruleset
from meshagent.lab import Lab
from meshagent.lab.host import Host
from meshagent.lab.program import Program
from meshagent.lab.waiting import wait_until

TABLE = """table inet meshagent {
	map gate {
		type inet_proto : verdict
		elements = { tcp : goto captured }
	}
	map refusing {
		type inet_proto : verdict
	}
	set claimed4 {
		type ipv4_addr . inet_service
	}
	chain out {
		type nat hook output priority -100; policy accept;
		ip daddr . tcp dport @claimed4 meta l4proto vmap @gate
	}
	chain refuse {
		type filter hook output priority filter; policy accept;
		tcp dport 15001 ct status dnat meta l4proto vmap @refusing
	}
	chain refused {
		meta l4proto tcp reject with tcp reset
	}
	chain captured {
		meta l4proto tcp counter redirect to :15001
	}
	chain around {
		counter return
	}
}
"""
ANCHOR = """table inet meshagent_anchor {
	chain keep {
		type nat hook output priority -100; policy accept;
		ip daddr 192.0.2.1 tcp dport 1 redirect to :1
	}
}
"""
_CAPTURED, _AROUND = (f"inet meshagent gate {{ tcp : goto {chain} }}\n" for chain in ("captured", "around"))
GATE = Gate(
    f"delete element {_CAPTURED}add element {_AROUND}",
    f"delete element {_AROUND}add element {_CAPTURED}",
)
_REFUSED = "inet meshagent refusing { tcp : goto refused }\n"
HUNG = Gate(f"add element {_REFUSED}", f"delete element {_REFUSED}")
HOLD = ANCHOR.replace("meshagent_anchor", "meshagent_hold")
CLAIMED = bytes((10, 99, 0, 1, 0, 80))
GATES = {"proxy": GATE, "hung": HUNG}
RULES = Ruleset(TABLE, ANCHOR, owner=True, digest="rules", gates=GATES, sets={"claimed4": CLAIMED}, hold=HOLD)
UNOWNED = replace(RULES, owner=False, digest="unowned")
CLOSED = replace(UNOWNED, digest="closed", gates={"hung": HUNG})


@dataclass
class Guarded:
    """A host, its guard process and a client of it."""

    host: Host
    program: Program
    client: GuardClient
    without: str = ""

    def nft(self, *words: str, check: bool = True) -> str:
        done = self.host.run(["nft", *words], check=check)
        return done.stdout + done.stderr

    def tables(self) -> list[str]:
        """Names of all inet tables that are there."""
        return sorted(line.rpartition(" ")[2] for line in self.nft("list", "tables").splitlines())

    def restart(self) -> None:
        """Another guard process on the same root."""
        self.program = self.host.popen(argv(self.host, self.without), log="guard")
        wait_until(self.client.state, 20, what="the guard to answer")

    def kill(self) -> None:
        """The guard is gone, as by the kernel's out-of-memory killer, and the kernel has closed what it held."""
        self.program.kill()

    @property
    def log(self) -> str:
        return self.program.text()


@pytest.fixture(scope="module")
def guard_lab() -> Iterator[Lab]:
    with Lab(families=(4,)) as opened:
        yield opened


@pytest.fixture
def guarded(guard_lab: Lab) -> Iterator[Guarded]:
    """As on this kernel: 6.9 or newer, so the table is the guard's own and outlives it."""
    with opened(guard_lab) as made:
        yield made


@pytest.fixture
def owning(guard_lab: Lab) -> Iterator[Guarded]:
    """As on kernels 5.12 to 6.8: an owned table ends with its owner, so with policy closed it is nobody's."""
    with opened(guard_lab, "persist") as made:
        yield made


@pytest.fixture
def ownerless(guard_lab: Lab) -> Iterator[Guarded]:
    """As on kernels before 5.12."""
    with opened(guard_lab, "owner") as made:
        yield made


@contextmanager
def opened(lab: Lab, without: str = "") -> Iterator[Guarded]:
    """A guard on a host of its own."""
    host = lab.host(f"host-{len(lab.hosts)}")
    client = GuardClient(host.root / "run/meshagent/guard.sock")
    made = Guarded(host, host.popen(argv(host, without), log="guard"), client, without)
    wait_until(client.state, 20, what="the guard to answer")
    try:
        yield made
    finally:
        client.close()
        made.program.stop()


def argv(host: Host, without: str) -> list[str]:
    return [*command(host.root), *(["--without", without] if without else [])]
