"""Resources as both ends of ADS hold them: a version and a serialised body; maps of them make a snapshot."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """One resource as published: ``version`` is its content hash, ``body`` the serialised message (Any.value)."""

    version: str
    body: bytes


#: type URL -> resource name -> entry. Treated as immutable; share entries (and whole inner maps, which makes
#: comparing cheap) between hosts. A type that is *absent* is not known yet: nothing is said about it and nothing of
#: it is removed. A type with an *empty* map is known to have no resources.
Snapshot = Mapping[str, Mapping[str, Entry]]
