"""What the guard knows, as frozen values. Times: ``*_at`` are wall-clock seconds, ``deadline`` counts boot time."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from meshagent.guard import elements
from meshagent.guard.elements import Change
from meshagent.guard.legacy_text import require_legacy
from meshagent.guard.text import require_table, require_updates, with_elements
from meshagent.guard.wire import RequestError, take
from meshagent.model.marks import ANCHOR_TABLE, HOLD_TABLE, TABLE

NFT, IPTABLES = "nft", "iptables"

#: The most a person may wait before confirming; longer is a mistake, not a trial.
MAX_TRIAL_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Gate:
    """How to let new connections pass a dead helper, and how to capture them again: element changes, maybe none."""

    bypass: str = ""
    recapture: str = ""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Everything that should be in the kernel. ``rules`` is empty where nothing should be.

    ``rules`` is the table without the addresses, which are in ``sets``: name -> sorted keys (see elements.py).

    ``backend`` is ``nft``, or ``iptables`` where the texts are for iptables-restore (legacy_text.py).

    ``owner`` allows a table that dies with the guard (failure policy open). ``carry`` names dynamic sets whose
    counted elements survive a replacement. ``hold`` is what a flush by others must not take along: it stands in a
    small table of the guard's own where ``rules`` can be flushed.
    """

    rules: str = ""
    anchor: str = ""
    owner: bool = False
    digest: str = ""
    gates: Mapping[str, Gate] = field(default_factory=dict)
    carry: tuple[str, ...] = ()
    backend: str = NFT
    sets: Mapping[str, bytes] = field(default_factory=dict)
    hold: str = ""

    @property
    def table(self) -> str:
        """The whole table as a person reads it, addresses and all."""
        return with_elements(self.rules, {name: elements.texts(name, keys) for name, keys in self.sets.items()})


@dataclass(frozen=True, slots=True)
class Watch:
    """A process whose death opens a gate at once. ``started`` as in /proc/PID/stat, clock ticks after boot.

    ``port``: where it listens on loopback and is asked whether it still answers; 0 where nobody asks.
    """

    pid: int
    started: int
    opens: bool
    port: int = 0


@dataclass(frozen=True, slots=True)
class Bypass:
    """A gate that is open now."""

    since_at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A change that waits for ``confirm``; at ``deadline`` ``back_to`` is installed. ``note`` is the agent's own."""

    deadline: float
    until_at: float
    back_to: Ruleset
    note: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A trial that nobody confirmed; remembered on disk until the agent acknowledges it."""

    at: float
    reason: str
    note: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Heal:
    """Somebody else changed our rules and we put them back."""

    at: float
    pid: int
    name: str
    what: str


@dataclass(frozen=True, slots=True)
class State:
    """All of it. ``installed`` is None until the first apply, and after ``remove``.

    ``owned``: nobody else can touch the table. ``kept``: and the kernel keeps it when the guard dies.
    """

    installed: Ruleset | None = None
    owned: bool = False
    kept: bool = False
    bypasses: Mapping[str, Bypass] = field(default_factory=dict)
    watches: Mapping[str, Watch] = field(default_factory=dict)
    trial: Trial | None = None
    rolled_back: RolledBack | None = None
    heals: int = 0
    last_heal: Heal | None = None
    hangs: int = 0

    def with_watch(self, gate: str, watch: Watch) -> "State":
        return replace(self, watches={**self.watches, gate: watch})

    def without_watch(self, gate: str) -> "State":
        return replace(self, watches={name: watch for name, watch in self.watches.items() if name != gate})


def ruleset_from(params: dict[str, Any]) -> Ruleset:
    """Read and judge a ruleset of a request or of the roll-back file; ``RequestError`` names what is wrong."""
    rules, anchor = take(params, "rules", str, ""), take(params, "anchor", str, "")
    backend = take(params, "backend", str, NFT)
    if backend not in (NFT, IPTABLES):
        raise RequestError("bad-request", f"{backend[:40]!r} is not a backend", f"one of {NFT}, {IPTABLES}")
    hold = take(params, "hold", str, "")
    _require_texts(backend, rules, anchor, hold)
    carry = tuple(str(name) for name in take(params, "carry", list, []))
    if not all(name.isascii() and name.isidentifier() for name in carry):
        raise RequestError("bad-request", "carry holds something that isn't the name of a set")
    gates = {str(name): _gate(value, backend) for name, value in take(params, "gates", dict, {}).items()}
    owner, digest = take(params, "owner", bool, False), take(params, "digest", str, "")
    sets = {str(name): _keys(str(name), value) for name, value in take(params, "sets", dict, {}).items()}
    return Ruleset(rules, anchor, owner, digest, gates, carry, backend, sets, hold)


def _require_texts(backend: str, table: str, anchor: str, hold: str) -> None:
    if backend == IPTABLES:
        require_legacy(table)
        require_legacy(anchor)
        return
    if table:
        require_table(table, TABLE)
    if anchor:
        require_table(anchor, ANCHOR_TABLE)
    if hold:
        require_table(hold, HOLD_TABLE)


def ruleset_to(ruleset: Ruleset) -> dict[str, Any]:
    """The reverse of ``ruleset_from``."""
    return {
        "rules": ruleset.rules,
        "anchor": ruleset.anchor,
        "owner": ruleset.owner,
        "digest": ruleset.digest,
        "gates": {name: {"bypass": gate.bypass, "recapture": gate.recapture} for name, gate in ruleset.gates.items()},
        "carry": list(ruleset.carry),
        "backend": ruleset.backend,
        "sets": {name: _encoded(keys) for name, keys in ruleset.sets.items()},
        "hold": ruleset.hold,
    }


def changes_from(params: dict[str, Any]) -> dict[str, Change]:
    """Keys that come and go, by set; ``RequestError`` names what is wrong."""
    found = {}
    for name, value in take(params, "changes", dict).items():
        if not isinstance(value, dict):
            raise RequestError("bad-request", "a change must be an object with add and delete")
        found[str(name)] = Change(_keys(name, value.get("add", "")), _keys(name, value.get("delete", "")))
    return found


def changes_to(changes: Mapping[str, Change]) -> dict[str, Any]:
    """The reverse of ``changes_from``."""
    return {name: {"add": _encoded(one.add), "delete": _encoded(one.delete)} for name, one in changes.items()}


def _keys(name: str, value: object) -> bytes:
    try:
        packed = base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except binascii.Error:
        packed = None
    if packed is None:
        raise RequestError("bad-request", f"the addresses of {name[:40]!r} are not base64")
    elements.require(name, packed)
    return packed


def _encoded(packed: bytes) -> str:
    return base64.b64encode(packed).decode()


def _gate(value: object, backend: str) -> Gate:
    if not isinstance(value, dict):
        raise RequestError("bad-request", "a gate must be an object with bypass and recapture")
    gate = Gate(take(value, "bypass", str, ""), take(value, "recapture", str, ""))
    for text in (gate.bypass, gate.recapture):
        if backend == IPTABLES:
            require_legacy(text)
        else:
            require_updates(text, TABLE)
    return gate


def note_from(params: dict[str, Any]) -> dict[str, str]:
    """A few short strings of the agent, kept and given back as they are."""
    note = {str(key): str(value) for key, value in take(params, "note", dict, {}).items()}
    if len(note) > 16 or any(len(key) + len(value) > 1000 for key, value in note.items()):
        raise RequestError("bad-request", "the note holds too much", "at most 16 strings of 1000 characters")
    return note
