"""What a chain of rules does with one packet, as far as a reader of rules can know: three-valued logic. Pure.

The packet is the first one of a new TCP connection to one port, from another host. A match on what isn't known (the
sender's address, the interface) may hold or not; so a chain's answer is a set of fates, and more than one means that it
depends on who calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

#: Loops of jumps don't load in the kernel; this is for a listing that lies.
_MOST_STEPS = 20_000


class Holds(Enum):
    NO = 0
    MAYBE = 1
    YES = 2

    def __invert__(self) -> "Holds":
        return Holds(2 - self.value)

    def __and__(self, other: "Holds") -> "Holds":
        return Holds(min(self.value, other.value))


class Fate(Enum):
    ACCEPTED = "accepted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Rule:
    """``action``: ``accept``, ``refuse``, ``return``, ``jump NAME``, ``goto NAME``; empty for one that only counts."""

    holds: Holds
    action: str = ""


Chains = Mapping[str, Sequence[Rule]]


def fates(chains: Chains, start: str, policy: Fate) -> frozenset[Fate]:
    """Everything that may happen to the packet in the base chain ``start``."""
    walk = _Walk(chains)
    falls = walk.chain(start)
    return frozenset(walk.found | ({policy} if falls else set()))


class _Walk:
    def __init__(self, chains: Chains) -> None:
        self._chains = chains
        self._steps = 0
        self.found: set[Fate] = set()

    def chain(self, name: str) -> bool:
        """Walk a chain; True when the packet may come out at its end."""
        returns = False
        for rule in self._chains.get(name, ()):
            self._steps += 1
            if rule.holds is Holds.NO or not rule.action or self._steps > _MOST_STEPS:
                continue
            sure, (verb, _, target) = rule.holds is Holds.YES, rule.action.partition(" ")
            if verb == "return":
                returns = True
                if sure:
                    return True
            elif verb in ("accept", "refuse"):
                self.found.add(Fate.ACCEPTED if verb == "accept" else Fate.REFUSED)
                if sure:
                    return returns
            else:
                comes_out = self.chain(target)
                if sure and (verb == "goto" or not comes_out):
                    return returns or comes_out
                returns = returns or (verb == "goto" and comes_out)
        return True
