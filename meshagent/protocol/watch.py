"""What one client has of one resource type, and what is missing from there to the desired state."""

import re
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from meshagent.protocol.entry import Entry, Patched
from meshagent.protocol.held import ABSENT, Held
from meshagent.protocol.types import MAX_NAME_BYTES, MAX_NAMES, NAMED_ONLY, WILDCARD, ProtocolError

__all__ = ["ABSENT", "Watch", "checked_names", "first_watch"]


@dataclass(slots=True)
class Watch:
    """One type on one stream.

    ``held``: name -> version the client has or was last sent. ``greeted``: the first request has been answered, if
    only by an empty response (Envoy's start waits for it). ``dirty``: something may be missing. ``compared``: the
    map last compared to the end, so that an unchanged one costs nothing; ``whole``: what is held has changed otherwise
    since, so that a patch of that map doesn't tell everything. ``parts``: names that must not share a
    response with names of another part (see ``separate``).
    """

    wildcard: bool = False
    names: AbstractSet[str] = frozenset()
    held: Held = field(default_factory=Held)
    greeted: bool = False
    dirty: bool = True
    whole: bool = True
    compared: Mapping[str, Entry] | None = None
    parts: dict[str, int] = field(default_factory=dict)

    def subscribe(self, subscribe: Iterable[str], unsubscribe: Iterable[str]) -> None:
        """A later request. A name asked for again is sent again: a re-warmed cluster waits for its endpoints.

        A name unsubscribed but covered by the wildcard is sent again too: the client dropped it.
        """
        wanted, unwanted = checked_names(subscribe), checked_names(unsubscribe)
        if not wanted and not unwanted:
            return
        self.wildcard = WILDCARD in wanted or (self.wildcard and WILDCARD not in unwanted)
        self.names = (self.names - unwanted | wanted) - {WILDCARD}
        if len(self.names) > MAX_NAMES:
            raise ProtocolError(f"more than {MAX_NAMES} names subscribed")
        for name in wanted | unwanted:
            self.held.drop(name)
        if not self.wildcard:
            for name in self.held.names() - self.names:
                self.held.drop(name)
        self.dirty = self.whole = True

    def changed(self, entries: Mapping[str, Entry]) -> list[str]:
        """Names to send, sorted by part and name: wanted, existing, and not held in this version."""
        touched, held = self._touched(entries), self.held
        wanted: Collection[str]
        if touched is None and self._complete(entries):
            return []
        if touched is not None:
            wanted = [name for name in touched if name in entries and (self.wildcard or name in self.names)]
        else:
            wanted = entries.keys() if self.wildcard else self.names & entries.keys()
        missing = sorted(name for name in wanted if held.get(name) != entries[name].version)
        return sorted(missing, key=lambda name: self.parts.get(name, 0)) if self.parts else missing

    def removed(self, entries: Mapping[str, Entry]) -> list[str]:
        """Names to report as gone, sorted: held but no longer existing, or asked for by name and not existing."""
        touched, held = self._touched(entries), self.held
        if touched is None and self._complete(entries):
            return []
        if touched is not None:
            missing = touched - entries.keys()
            return sorted(n for n in missing if (held.get(n) != ABSENT if n in held else n in self.names))
        gone = {name for name in held.names() - entries.keys() if held.get(name) != ABSENT}
        gone.update(name for name in self.names - entries.keys() if name not in held)
        return sorted(gone)

    def _touched(self, entries: Mapping[str, Entry]) -> frozenset[str] | None:
        """The only names that can be missing; None: any."""
        before = self.compared
        if self.whole or not isinstance(entries, Patched) or not isinstance(before, Patched):
            return None
        return entries.touched if entries.after is before.mark else None

    def _complete(self, entries: Mapping[str, Entry]) -> bool:
        """True when everything there is is wanted and held as it is; only a map that knows its versions tells."""
        if not isinstance(entries, Patched):
            return False
        asked = self.names <= entries.keys() if self.wildcard else self.names == entries.keys()
        return asked and self.held.equals(entries.versions)

    def told(self, entries: Mapping[str, Entry]) -> None:
        """The client has heard of all of ``entries`` that it wants."""
        self.dirty, self.whole, self.compared = False, False, entries
        if self.held.wide:
            self._complete(entries)

    def sent(self, resources: Mapping[str, str], removed: Iterable[str]) -> None:
        """Record what was just sent as held."""
        self.held.put(resources)
        for name in resources if self.parts else ():
            self.parts.pop(name, None)
        for name in removed:
            if name in self.names:
                self.held.put({name: ABSENT})
            else:
                self.held.drop(name)

    def separate(self, resources: Mapping[str, str], error: str) -> None:
        """A response was refused: send what was good in it again, apart from what was bad.

        Good is what the error does not name; where it names nothing, each half is tried by itself, so that in the
        end what is refused stands alone.
        """
        if len(resources) < 2:
            return
        good = [name for name in sorted(resources) if not _named(name, error)]
        if len(good) == len(resources):
            first = max(self.parts.values(), default=0) + 1
            self.parts.update({name: first + (2 * i >= len(good)) for i, name in enumerate(good)})
        for name in good:
            if self.held.get(name) == resources[name]:
                self.held.drop(name)
                self.dirty = self.whole = True


def _named(name: str, text: str) -> bool:
    """True when ``text`` speaks of ``name`` (and not of a longer name that holds it)."""
    return name in text and re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


def first_watch(type_url: str, names: frozenset[str], unsubscribe: Iterable[str], versions: Mapping[str, str]) -> Watch:
    """The first request of a type on a stream: ``names`` subscribed (checked), ``versions`` that the client kept from
    an earlier stream (shared, so not changed)."""
    wildcard = WILDCARD in names or (not names and type_url not in NAMED_ONLY)
    unwanted = checked_names(unsubscribe) | {WILDCARD}
    wanted = names if unwanted.isdisjoint(names) else names - unwanted
    if not wildcard and not versions.keys() <= wanted:
        versions = {name: version for name, version in versions.items() if name in wanted}
    return Watch(wildcard=wildcard, names=wanted, held=Held(versions))


def checked_names(names: Iterable[str]) -> set[str]:
    """The names as a set; ``ProtocolError`` when one is empty or too long, or there are too many."""
    result = set(names)
    if len(result) > MAX_NAMES or "" in result or max(map(len, result), default=0) > MAX_NAME_BYTES:
        raise ProtocolError("subscriptions with empty, overlong or too many names")
    return result
