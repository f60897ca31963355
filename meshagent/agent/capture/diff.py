"""From one ruleset to the next with the least change. Pure.

Usually only addresses change: a service comes or goes. Then elements are added and deleted and no rule is touched, so
counters go on and 5,000 addresses are not sent again. Anything else is a replacement.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from meshagent.agent.capture import nft
from meshagent.agent.capture.values import Intent
from meshagent.guard.state import Ruleset
from meshagent.model.marks import TABLE

#: Elements in one command; libnftables' parser takes any number, this only keeps lines readable.
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Step:
    """``replace`` the whole ruleset, or run ``lines`` (empty: nothing to do). ``ruleset`` is the state after it."""

    ruleset: Ruleset
    replace: bool = False
    lines: str = ""


def step(before: Intent | None, after: Intent) -> Step:
    """How to get from the ``before`` that is in the kernel (None: unknown or nothing) to ``after``."""
    ruleset = nft.render(after)
    if before is None or not _same_rules(before, after):
        return Step(ruleset, replace=True)
    old, new = nft.address_sets(before), nft.address_sets(after)
    return Step(ruleset, lines="".join(_changes(old, new)))


def _same_rules(before: Intent, after: Intent) -> bool:
    """True when only addresses differ; who was spared or refused is not in the rules either."""
    bare = [replace(intent, virtual=(), claimed=(), spared=(), refused=(), waiting=()) for intent in (before, after)]
    return bare[0] == bare[1]


def _changes(old: Mapping[str, tuple[str, ...]], new: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for name in new:
        before, after = set(old[name]), set(new[name])
        yield from _lines("delete", name, sorted(before - after))
        yield from _lines("add", name, sorted(after - before))


def _lines(verb: str, name: str, elements: list[str]) -> Iterator[str]:
    for start in range(0, len(elements), _CHUNK):
        yield f"{verb} element inet {TABLE} {name} {{ {', '.join(elements[start : start + _CHUNK])} }}\n"
