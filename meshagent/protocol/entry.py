"""Resources as both ends of ADS hold them: a version and a serialised body; maps of them make a snapshot."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter

from meshagent.protocol.brief import digest


@dataclass(frozen=True, slots=True)
class Entry:
    """One resource as published: ``version`` is its content hash, ``body`` the serialised message (Any.value)."""

    version: str
    body: bytes


class Patched(dict[str, Entry]):
    """A map of entries that knows by which names it differs from an earlier one.

    Whoever compared the earlier one to the end looks at ``touched`` only: with a thousand streams and a thousand
    services the difference between comparing one name and all of them is a second of every change. ``after`` names
    the earlier map by its ``mark``, without keeping it. Not changed any more once somebody has asked for ``versions``.
    """

    __slots__ = ("_digest", "_names", "_versions", "after", "mark", "touched")

    def __init__(self, entries: Mapping[str, Entry], after: object | None = None, touched: Iterable[str] = ()) -> None:
        super().__init__(entries)
        self.mark = object()
        self.after = after
        self.touched = frozenset(touched)
        self._versions: dict[str, str] | None = None
        self._digest = ""
        self._names: frozenset[str] | None = None

    @property
    def versions(self) -> Mapping[str, str]:
        """Name -> version, made once for all who ask: a thousand agents that come back compare with it whole."""
        if self._versions is None:
            self._versions = dict(zip(self, map(attrgetter("version"), self.values()), strict=True))
        return self._versions

    @property
    def digest(self) -> str:
        """Of ``versions``; made once, too."""
        if not self._digest:
            self._digest = digest(self.versions)
        return self._digest

    @property
    def names(self) -> frozenset[str]:
        """Made once for all who subscribe to each of them."""
        if self._names is None:
            self._names = frozenset(self)
        return self._names


def versions_of(entries: Mapping[str, Entry]) -> Mapping[str, str]:
    """Name -> version."""
    return entries.versions if isinstance(entries, Patched) else {name: e.version for name, e in entries.items()}


def names_of(entries: Mapping[str, Entry]) -> frozenset[str]:
    """All names."""
    return entries.names if isinstance(entries, Patched) else frozenset(entries)


def digest_of(entries: Mapping[str, Entry]) -> str:
    """Of names and versions (``brief.digest``)."""
    return entries.digest if isinstance(entries, Patched) else digest(versions_of(entries))


#: type URL -> resource name -> entry. Treated as immutable; share entries (and whole inner maps, which makes
#: comparing cheap) between hosts. A type that is *absent* is not known yet: nothing is said about it and nothing of
#: it is removed. A type with an *empty* map is known to have no resources.
Snapshot = Mapping[str, Mapping[str, Entry]]
