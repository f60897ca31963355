"""How rules get into the kernel: what is wanted and what is there in, one nft transaction out. Pure.

Three kinds of table, by what the kernel can do (tried, see perform.py):

- kept (kernel 6.9): the guard's alone while it lives, and outlives it. It is made empty and never made again: rules
  are exchanged inside it, also when the failure policy changes. Its definition isn't among our commands, because nft
  can't write its flags (keeping.py).
- owned (5.12), only with failure policy open: it ends with the guard.
- nobody's: whoever flushes it has it restored. Beside it stands a small table that is owned, ``hold``: while the
  guard lives no flush can take away the last NAT rule, nor the rules that lead answers back to the proxy.

Rules that matter here:
- our rules are replaced in one batch; two leak connections. The table stays, emptied, with its places in the kernel's
  hooks; only where it isn't there as it should be the batch is ``table``, ``delete table``, full table.
- the first line of that batch must repeat the owner flag of the table that is there (the kernel refuses to change it).
- the anchor table is made first and removed last: without any NAT chain the kernel unhooks NAT, and established
  redirected connections die.
- a gate that is open stays open over a replacement: the bypass is part of the same batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from meshagent.guard import elements
from meshagent.guard.elements import Change
from meshagent.guard.nftquery import PERSIST
from meshagent.guard.state import IPTABLES, NFT, Ruleset, State
from meshagent.guard.text import commands, emptied, exchanged, same_maps, with_elements, with_owner
from meshagent.model.marks import ANCHOR_TABLE, HOLD_TABLE, TABLE


class Memory(Enum):
    """What happens to the roll-back file: nothing, write it from the new state, delete it."""

    KEEP = "keep"
    WRITE = "write"
    FORGET = "forget"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the kernel can do and holds. ``carried`` are ready lines that add the elements of dynamic sets again.

    ``nft``: nftables can be used. ``nft_present``, ``legacy_present``: something of ours is there, also of an earlier
    guard or of the other backend. ``intact``: the table is as it was made, for all we know. ``flags``: those of our
    table, None where there is none; ``contents``: what is in it, by kind and name, where that must go.
    ``hold_present``: the small table beside nobody's is there.
    """

    owner_supported: bool
    anchor_present: bool
    carried: str = ""
    nft: bool = True
    nft_present: bool = True
    legacy_present: bool = False
    intact: bool = False
    keep_supported: bool = False
    flags: int | None = None
    contents: tuple[tuple[str, str], ...] = ()
    hold_present: bool = False


@dataclass(frozen=True, slots=True)
class LegacyChange:
    """What the legacy tables hold of ours afterwards: ``texts`` laid over each other, the anchor if it is kept.

    With ``flip`` only the chains in it change.
    """

    texts: tuple[str, ...] = ()
    keep_anchor: bool = True
    flip: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """One transaction (empty = none), the state once it is done, and what to remember.

    ``changes`` are elements of sets that come and go, where that is the whole transaction. With ``keep`` the table is
    made, or taken over, as one that is kept, before the transaction fills it. With ``legacy`` the legacy tables change
    too: before the transaction where rules move there, else behind it.
    """

    state: State
    batch: str = ""
    memory: Memory = Memory.KEEP
    legacy: LegacyChange | None = None
    keep: bool = False
    changes: Mapping[str, Change] = field(default_factory=dict)


# --- nftables --------------------------------------------------------------------------------------------------------


def keeps(wanted: Ruleset, facts: Facts) -> bool:
    """Whether the table will be a kept one. What is there without that flag stays what it is until it is removed."""
    able = facts.keep_supported and (facts.flags is None or bool(facts.flags & PERSIST))
    return able and bool(wanted.rules) and wanted.backend == NFT


def in_place(state: State, wanted: Ruleset, facts: Facts) -> bool:
    """Whether the table can stay and only its contents change: it must be there, and of the right kind."""
    before = state.installed
    if before is None or not before.rules or not wanted.rules or not before.backend == wanted.backend == NFT:
        return False
    if keeps(wanted, facts):
        return facts.intact and state.kept and facts.flags is not None
    if not _maps_stay(state, before, wanted):
        return False
    return facts.intact and state.owned == (wanted.owner and facts.owner_supported)


def _maps_stay(state: State, before: Ruleset, wanted: Ruleset) -> bool:
    """What a gate has flipped stays in the map, so gates and maps must be the same."""
    return not state.bypasses or (before.gates == wanted.gates and same_maps(before.rules, wanted.rules))


def install(state: State, wanted: Ruleset, facts: Facts) -> Plan:
    """Put ``wanted`` in the place of what is there, whatever that is."""
    if wanted.backend == IPTABLES:
        return _install_legacy(state, wanted, facts)
    kept = keeps(wanted, facts)
    owned = kept or (bool(wanted.rules) and wanted.owner and facts.owner_supported)
    other = LegacyChange(keep_anchor=not wanted.rules) if facts.legacy_present else None
    after = replace(state, installed=wanted, owned=owned, kept=kept)
    batch = anchor_lines(wanted, facts) + hold_lines(wanted, facts, owned=owned)
    if in_place(state, wanted, facts):
        assert state.installed is not None
        batch += _exchanged(state, state.installed, wanted)
        stay = _maps_stay(state, state.installed, wanted)
    else:
        batch += _anew(state, wanted, facts, owned=owned)
        stay = False
    if wanted.rules and not stay:
        after = replace(after, bypasses={gate: why for gate, why in state.bypasses.items() if gate in wanted.gates})
        batch += "".join(wanted.gates[gate].bypass for gate in sorted(after.bypasses))
    keep = kept and not (state.kept and facts.flags is not None)
    return Plan(after, batch if facts.nft or wanted.rules else "", legacy=other, keep=keep)


def _anew(state: State, wanted: Ruleset, facts: Facts, *, owned: bool) -> str:
    """A whole table in the place of another, or inside a kept one everything."""
    if keeps(wanted, facts):
        return emptied(facts.contents, TABLE) + commands(wanted.table, TABLE) + facts.carried
    batch = clear_lines(state, facts)
    if wanted.rules:
        batch += (with_owner(wanted.table, TABLE) if owned else wanted.table) + facts.carried
    return batch


def _exchanged(state: State, before: Ruleset, wanted: Ruleset) -> str:
    """The contents of the table for others; addresses in sets of both only as far as they differ."""
    both = [name for name in wanted.sets if name in before.sets]
    new = {name: elements.texts(name, keys) for name, keys in wanted.sets.items() if name not in both}
    kept = [*both, *(name for name in wanted.carry if name in before.carry)]
    maps = _maps_stay(state, before, wanted)
    gone, come = exchanged(before.rules, with_elements(wanted.rules, new), kept, TABLE, maps=maps)
    changes = {name: elements.difference(name, before.sets[name], wanted.sets[name]) for name in both}
    return gone + commands(come, TABLE) + elements.change_lines(TABLE, changes)


def check_batch(state: State, wanted: Ruleset, facts: Facts) -> str:
    """The batch that would be run, for a dry run; in one a table can't be made first and filled then."""
    absent = facts.keep_supported and facts.flags is None
    return install(state, wanted, replace(facts, keep_supported=False) if absent else facts).batch


def anchor_lines(wanted: Ruleset, facts: Facts) -> str:
    """The anchor is never replaced, only made where it is missing."""
    return wanted.anchor if wanted.anchor and not facts.anchor_present else ""


def hold_lines(wanted: Ruleset, facts: Facts, *, owned: bool) -> str:
    """Beside rules that are nobody's, where the kernel knows owners; it goes when they go."""
    needed = bool(wanted.rules and wanted.hold) and facts.owner_supported and not owned
    if needed:
        return "" if facts.hold_present else with_owner(wanted.hold, HOLD_TABLE)
    return DELETE_HOLD if facts.hold_present else ""


def clear_lines(state: State, facts: Facts | None = None) -> str:
    """Make sure the table is there, then delete it: works whether or not it was. A kept one can't be named like that,
    but nobody else can delete it meanwhile."""
    if facts is not None and facts.flags is not None and facts.flags & PERSIST:
        return f"delete table inet {TABLE}\n"
    flags = " { flags owner; }" if state.owned and not state.kept else ""
    return f"table inet {TABLE}{flags}\ndelete table inet {TABLE}\n"


DELETE_ANCHOR = f"table inet {ANCHOR_TABLE}\ndelete table inet {ANCHOR_TABLE}\n"
DELETE_HOLD = f"delete table inet {HOLD_TABLE}\n"


def carried_lines(sets: Mapping[str, list[tuple[str, int, int, int]]]) -> str:
    """Add the counted elements of dynamic sets again: set -> (key, packets, bytes, seconds left)."""
    lines = []
    for name, counted in sets.items():
        if not counted:
            continue
        parts = (
            f"{key} counter packets {packets} bytes {size} expires {left}s" for key, packets, size, left in counted
        )
        lines.append(f"add element inet {TABLE} {name} {{ {', '.join(parts)} }}\n")
    return "".join(lines)


# --- legacy iptables -------------------------------------------------------------------------------------------------


def _install_legacy(state: State, wanted: Ruleset, facts: Facts) -> Plan:
    """The rules of nft go once those of iptables are there, and with them the anchor: the new one does its work."""
    batch = clear_lines(state, facts) + (DELETE_HOLD if facts.hold_present else "")
    batch += DELETE_ANCHOR if wanted.rules else ""
    after = replace(state, installed=wanted, owned=False, kept=False)
    if wanted.rules:
        open_gates = {gate: why for gate, why in state.bypasses.items() if gate in wanted.gates}
        after = replace(after, bypasses=open_gates)
    change = LegacyChange(legacy_texts(after))
    return Plan(after, batch if facts.nft and facts.nft_present else "", legacy=change)


def legacy_texts(state: State) -> tuple[str, ...]:
    """What the legacy tables hold in this state; gates that are open lie over the rules."""
    rules = state.installed
    if rules is None or rules.backend != IPTABLES:
        return ()
    opened = (rules.gates[gate].bypass for gate in sorted(state.bypasses) if gate in rules.gates)
    return tuple(text for text in (rules.table, rules.anchor, *opened) if text)
