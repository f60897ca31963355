"""What the control plane offered, what Envoy proved to take, and what is served: one type of resource, pure.

Per resource: ``offered`` (the newest), ``proven`` (the newest Envoy ACKed). Served is what was offered; where Envoy
refused it, what was proven before. So one bad resource holds up only itself.

A refusal that names nobody is taken apart by trials: all suspects go back to what was proven, then half of them is
offered again, and so on, until the bad one stands alone: log2(n) rounds for one bad among n. Removals can't be refused
and take effect at once.

A listener whose port somebody else holds is refused for no fault of its own: it stays worth keeping, and is offered
again (``try_again``) when the port is free. An Envoy may so refuse what an earlier one had proven: then it is ``lost``.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from meshagent.agent.relay.nack import blame, is_port_taken
from meshagent.protocol.entry import Entry, Patched


@dataclass(slots=True)
class _Slot:
    """One name."""

    offered: Entry
    proven: Entry | None = None
    used: bool = False  # the Envoy that runs now has taken this name, in some version
    lost: bool = False  # this Envoy refuses what an earlier one had proven
    reason: str = ""  # why offered was refused
    held_back: bool = False  # waits for its trial
    taken_back: bool = False  # while held back: Envoy has answered the way back, so a trial counts as news again

    @property
    def served(self) -> Entry | None:
        if self.lost:
            return None
        return self.proven if self.reason or self.held_back else self.offered

    @property
    def good(self) -> Entry | None:
        """Worth keeping on disk: what was proven, else what nobody has refused for what it is."""
        return self.proven or (None if self.reason and not is_port_taken(self.reason) else self.offered)

    def take(self, entry: Entry) -> None:
        self.offered, self.reason, self.held_back, self.taken_back, self.lost = entry, "", False, False, False

    @property
    def waiting(self) -> bool:
        """Envoy has not yet said what it thinks of ``offered``."""
        return not self.reason and self.offered != self.proven


@dataclass(slots=True)
class Ledger:
    """All resources of one type.

    ``known``: there is something to say about this type, from the control plane (even "none") or from disk.
    ``heard``: the control plane has said it in this life of the agent.
    """

    type_url: str
    known: bool = False
    heard: bool = False
    _slots: dict[str, _Slot] = field(default_factory=dict)
    _trials: list[tuple[str, ...]] = field(default_factory=list)
    _trial: tuple[str, ...] = ()
    _served: Patched | None = None
    _moved: set[str] = field(default_factory=set)  # names that may be served otherwise than in ``_served``
    _claims: dict[str, str] = field(default_factory=dict)  # of the newest stream: name -> version; each good once

    # --- from the control plane

    def restore(self, entries: Mapping[str, Entry]) -> None:
        """Last-known-good from disk: all of it was in use once."""
        self.known = True
        self._slots = {name: _Slot(entry, entry) for name, entry in entries.items()}
        self._served = None

    def offer(self, changed: Mapping[str, Entry], removed: Iterable[str]) -> Mapping[str, str]:
        """Take news; returns those that Envoy has refused before in exactly this form, with its reason."""
        self.known = self.heard = True
        refused: dict[str, str] = {}
        for name, entry in changed.items():
            slot = self._slots.get(name)
            if slot is not None and slot.reason and slot.offered == entry:
                refused[name] = slot.reason
                continue
            self._moved.add(name)
            if slot is None:
                slot = self._slots[name] = _Slot(entry, used=name in self._claims)
            slot.take(entry)
            if self._claims.pop(name, None) == entry.version:  # Envoy has it: it is not sent, so it will not be ACKed
                slot.proven = entry
        self.forget(removed)
        return refused

    def forget(self, names: Iterable[str]) -> None:
        """Removed, or nobody refers to them any more."""
        for name in names:
            self._slots.pop(name, None)
            self._moved.add(name)

    # --- from Envoy

    def accepted(self, resources: Mapping[str, str], removed: Iterable[str] = ()) -> None:
        """Envoy ACKed a response: ``resources`` name -> version as sent."""
        for name, version in resources.items():
            self._prove(name, version)
        self._answered(resources, removed)

    def refused(self, resources: Mapping[str, str], removed: Iterable[str], error: str) -> Mapping[str, str]:
        """Envoy NACKed a response: returns the names that are to blame, with the reason.

        The others are proven, or held back: when Envoy has answered the way back, half of them is tried again.
        """
        suspects = [name for name, version in resources.items() if self._is_on_trial(name, version)]
        self._answered(resources, removed)
        verdict = blame(self.type_url, error, suspects)
        rest = [name for name in suspects if name not in verdict.bad]
        for name in verdict.bad:
            self._slots[name].reason = verdict.reason
        if verdict.applied:
            for name in rest:
                self._prove(name, resources[name])
        else:
            self._hold_back(rest, halve=not verdict.bad)
        lost = self._lose(resources, error)
        self._moved.update(resources)
        self._release()
        return dict.fromkeys([*verdict.bad, *lost], verdict.reason)

    def try_again(self, wanted: Callable[[str], bool]) -> bool:
        """Offer again what was refused for a reason that may have gone; True when there is such a thing."""
        slots = {name: slot for name, slot in self._slots.items() if slot.reason and wanted(slot.reason)}
        for slot in slots.values():
            slot.take(slot.offered)
        self._moved.update(slots)
        return bool(slots)

    def reconnected(self) -> None:
        """A new stream: it begins with a comparison, so no way back has to be waited for."""
        self._claims = {}
        for slot in self._slots.values():
            slot.taken_back = slot.held_back
        self._release()

    def claimed(self, versions: Mapping[str, str]) -> None:
        """Envoy says on a new stream what it has and took before: nothing is sent again, so nothing will be ACKed."""
        self._claims = dict(versions)  # an offer of one of these may still be on its way here
        for name, version in versions.items():
            self._prove(name, version)
        self._release()

    # --- what it comes to

    @property
    def served(self) -> Patched:
        """What Envoy should have now. The same object until something changed, then a patch of it: one endpoint set
        among a thousand is compared alone."""
        if self._served is None:
            pairs = ((name, slot.served) for name, slot in self._slots.items())
            self._served = Patched({name: entry for name, entry in pairs if entry is not None})
        elif self._moved:
            self._served = _patched(self._served, {name: self._serving(name) for name in self._moved})
        self._moved.clear()
        return self._served

    @property
    def proven(self) -> Mapping[str, Entry]:
        """What Envoy is known to use and the control plane still wants."""
        return {name: slot.proven for name, slot in self._slots.items() if slot.proven is not None}

    @property
    def used(self) -> Mapping[str, Entry]:
        """What the Envoy that runs now has taken and the control plane still wants.

        Not all of what is proven: that may be from disk, from another life of Envoy.
        """
        return {name: slot.proven or slot.offered for name, slot in self._slots.items() if slot.used}

    @property
    def good(self) -> Mapping[str, Entry]:
        """Worth keeping on disk."""
        pairs = ((name, slot.good) for name, slot in self._slots.items())
        return {name: entry for name, entry in pairs if entry is not None}

    @property
    def offered(self) -> Mapping[str, Entry]:
        """What the control plane last said, good or bad."""
        return {name: slot.offered for name, slot in self._slots.items()}

    @property
    def reasons(self) -> Mapping[str, str]:
        """Refused names -> reason."""
        return {name: slot.reason for name, slot in self._slots.items() if slot.reason}

    @property
    def judged(self) -> bool:
        """The Envoy that runs now has taken or refused everything that was offered."""
        return all(slot.used or slot.reason for slot in self._slots.values())

    def waiting(self, names: Iterable[str]) -> frozenset[str]:
        """Those of ``names`` on which Envoy has not said anything yet."""
        return frozenset(name for name in names if name in self._slots and self._slots[name].waiting)

    # --- inside

    def _serving(self, name: str) -> Entry | None:
        slot = self._slots.get(name)
        return slot.served if slot is not None else None

    def _lose(self, resources: Mapping[str, str], error: str) -> frozenset[str]:
        """Those that an earlier Envoy had proven in this very version, and that this one names as refused."""
        proven = [name for name, version in resources.items() if self._is_proven(name, version)]
        verdict = blame(self.type_url, error, [*proven, "", ""])  # a single suspect needs no naming
        lost = verdict.bad.intersection(proven) if verdict.applied else frozenset()
        for name in lost:
            slot = self._slots[name]
            slot.lost, slot.used, slot.reason = True, False, verdict.reason
        return lost

    def _is_proven(self, name: str, version: str) -> bool:
        slot = self._slots.get(name)
        return slot is not None and slot.proven == slot.offered and slot.offered.version == version

    def _answered(self, resources: Iterable[str], removed: Iterable[str]) -> None:
        for name in (*resources, *removed):
            self._claims.pop(name, None)
            slot = self._slots.get(name)
            if slot is not None and slot.held_back:
                slot.taken_back = True
        self._release()

    def _release(self) -> None:
        """Offer the next group whose way back is done, once the trial before is decided.

        Names that were overtaken by news are left out of their group.
        """
        if any(self._in_flight(name) for name in self._trial):
            return
        self._trial = ()
        groups = [tuple(n for n in group if n in self._slots and self._slots[n].held_back) for group in self._trials]
        self._trials = [group for group in groups if group]
        ready = next((g for g in self._trials if all(self._slots[name].taken_back for name in g)), None)
        if ready is not None:
            self._trials.remove(ready)
            self._trial = ready
            for name in ready:
                self._slots[name].held_back = self._slots[name].taken_back = False
            self._moved.update(ready)

    def _is_on_trial(self, name: str, version: str) -> bool:
        return self._in_flight(name) and self._slots[name].offered.version == version

    def _in_flight(self, name: str) -> bool:
        slot = self._slots.get(name)
        return slot is not None and slot.waiting and not slot.held_back

    def _prove(self, name: str, version: str) -> None:
        if self._is_on_trial(name, version):
            self._slots[name].proven = self._slots[name].offered
        if name in self._slots:
            self._slots[name].used = True

    def _hold_back(self, names: list[str], *, halve: bool) -> None:
        for name in names:
            self._slots[name].held_back = True
        middle = (len(names) + 1) // 2 if halve else len(names)
        self._trials += [group for group in (tuple(names[:middle]), tuple(names[middle:])) if group]


def _patched(before: Patched, moved: Mapping[str, Entry | None]) -> Patched:
    """``before`` with these names as they are now (None: not there); ``before`` itself where that is the same."""
    new = {name: entry for name, entry in moved.items() if before.get(name) is not entry}
    if not new:
        return before
    patched = Patched(before, before.mark, new)
    for name, entry in new.items():
        if entry is None:
            patched.pop(name, None)
        else:
            patched[name] = entry
    return patched
