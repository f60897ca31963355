"""A lab host with a guard and a ruleset that is small enough to read."""

from collections.abc import Iterator
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
CLAIMED = bytes((10, 99, 0, 1, 0, 80))
GATES = {"proxy": GATE, "hung": HUNG}
RULES = Ruleset(TABLE, ANCHOR, owner=True, digest="rules", gates=GATES, sets={"claimed4": CLAIMED})
UNOWNED = replace(RULES, owner=False, digest="unowned")
CLOSED = replace(UNOWNED, digest="closed", gates={"hung": HUNG})


@dataclass
class Guarded:
    """A host, its guard process and a client of it."""

    host: Host
    program: Program
    client: GuardClient

    def nft(self, *words: str, check: bool = True) -> str:
        done = self.host.run(["nft", *words], check=check)
        return done.stdout + done.stderr

    def restart(self) -> None:
        """Another guard process on the same root."""
        self.program = self.host.popen(command(self.host.root), log="guard")
        wait_until(self.client.state, what="the guard to answer")

    @property
    def log(self) -> str:
        return self.program.text()


@pytest.fixture(scope="module")
def guard_lab() -> Iterator[Lab]:
    with Lab(families=(4,)) as opened:
        yield opened


@pytest.fixture
def guarded(guard_lab: Lab) -> Iterator[Guarded]:
    host = guard_lab.host(f"host-{len(guard_lab.hosts)}")
    made = Guarded(
        host, host.popen(command(host.root), log="guard"), GuardClient(host.root / "run/meshagent/guard.sock")
    )
    wait_until(made.client.state, what="the guard to answer")
    yield made
    made.client.close()
    made.program.stop()
