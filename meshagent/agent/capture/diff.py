"""From one ruleset to the next with the least change. Pure.

Usually only addresses change: a service comes or goes. Then keys are added and deleted and no rule is touched, so
counters go on and 5,000 addresses are neither rendered nor sent again. Anything else is a replacement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter

from meshagent.agent.capture import nft
from meshagent.agent.capture.backend import render
from meshagent.agent.capture.values import Intent
from meshagent.config.settings import Backend
from meshagent.guard import elements
from meshagent.guard.elements import Change
from meshagent.guard.state import Ruleset
from meshagent.model.address import MeshAddress

#: Addresses compared in one go while looking for where two lists begin to differ, coarse to fine.
_STRIDES = (256, 16, 1)

_NOT_IN_RULES = {"virtual", "claimed", "unserved", "spared", "refused", "waiting"}
_rules_of = attrgetter(*(each.name for each in fields(Intent) if each.name not in _NOT_IN_RULES))


@dataclass(frozen=True, slots=True)
class Step:
    """``replace`` the whole ruleset, or make ``changes`` (none: nothing to do). ``ruleset`` is the state after it."""

    ruleset: Ruleset
    replace: bool = False
    changes: Mapping[str, Change] = field(default_factory=dict)


def step(before: Intent | None, after: Intent, installed: Ruleset | None = None) -> Step:
    """How to get from the ``before`` that is in the kernel (None: unknown or nothing) to ``after``.

    ``installed`` is ``before`` rendered, where that is at hand.
    """
    if before is None or after.backend is not Backend.NFT or not _same_rules(before, after):
        return Step(render(after), replace=True)
    installed = installed or nft.render(before)
    old, new = nft.addresses(before), nft.addresses(after)
    changes = {name: change for name in new if (change := _change(old[name], new[name])) is not None}
    if not changes:
        return Step(installed)
    sets = {
        name: elements.merged(name, keys, changes[name]) if name in changes else keys
        for name, keys in installed.sets.items()
    }
    digest = nft.digest(installed.rules, installed.owner, sets)
    return Step(replace(installed, sets=sets, digest=digest), changes=changes)


def _same_rules(before: Intent, after: Intent) -> bool:
    """True when only addresses differ; who was spared or refused is not in the rules either."""
    return _rules_of(before) == _rules_of(after)


def _change(before: Sequence[MeshAddress], after: Sequence[MeshAddress]) -> Change | None:
    """Both are sorted, and an address that stayed is mostly the same object: only the middle is looked at closely."""
    start = _beginning(before, after)
    end = _ending(before, after, min(len(before), len(after)) - start)
    gone, come = set(before[start : len(before) - end]), set(after[start : len(after) - end])
    if gone == come:
        return None
    return Change(add=_packed(come - gone), delete=_packed(gone - come))


def _packed(addresses: set[MeshAddress]) -> bytes:
    return b"".join(sorted(map(nft.packed, addresses)))


def _beginning(one: Sequence[MeshAddress], other: Sequence[MeshAddress]) -> int:
    """How many addresses both begin with."""
    length, found = min(len(one), len(other)), 0
    for stride in _STRIDES:
        while found + stride <= length and one[found : found + stride] == other[found : found + stride]:
            found += stride
    return found


def _ending(one: Sequence[MeshAddress], other: Sequence[MeshAddress], length: int) -> int:
    """How many addresses both end with, of the last ``length``."""
    ones, others, found = len(one), len(other), 0
    for stride in _STRIDES:
        while found + stride <= length:
            low, high = found + stride, found
            if one[ones - low : ones - high] != other[others - low : others - high]:
                break
            found = low
    return found
