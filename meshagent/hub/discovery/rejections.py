"""What hosts refused: the resources their Envoy or agent NACKed, until they take a newer version of them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from meshagent.protocol.publisher import Verdict
from meshagent.protocol.types import short_name

#: Kept per host, and characters kept of a reason: Envoy's error text can hold a whole configuration.
MAX_PER_HOST = 100
MAX_REASON = 500


@dataclass(frozen=True, slots=True)
class Rejection:
    """One refused resource. ``kind`` is the type's short name, ``version`` what was refused, ``reason`` in the client's
    words."""

    kind: str
    resource: str
    version: str
    reason: str
    since: datetime


class Rejections:
    """Host -> what it refuses now. Filled by the sessions, read by API and command line."""

    def __init__(self) -> None:
        self._hosts: dict[str, dict[tuple[str, str], Rejection]] = {}

    def of(self, host_name: str) -> tuple[Rejection, ...]:
        """What the host refuses now, oldest first."""
        return tuple(self._hosts.get(host_name, {}).values())

    def hosts(self) -> tuple[str, ...]:
        """Hosts that refuse something."""
        return tuple(sorted(self._hosts))

    def heard(self, host_name: str, verdict: Verdict, now: datetime) -> tuple[Rejection, ...]:
        """Record one verdict; returns what is refused newly by it.

        Of a refused response a client takes what its reason does not name, so only named resources are recorded;
        all of them where the reason names none.
        """
        held = self._hosts.setdefault(host_name, {})
        refused = set(_refused(verdict))
        for name in (*verdict.resources, *verdict.removed):
            if name not in refused:
                held.pop((verdict.type_url, name), None)
        news = tuple(_rejection(verdict, name, now) for name in sorted(refused))
        for name, rejection in zip(sorted(refused), news, strict=True):
            if len(held) < MAX_PER_HOST:
                held[verdict.type_url, name] = rejection
        if not held:
            del self._hosts[host_name]
        return news

    def forget(self, host_name: str) -> None:
        """The host has left, or starts afresh with a new stream."""
        self._hosts.pop(host_name, None)


def _refused(verdict: Verdict) -> Iterable[str]:
    if not verdict.error:
        return ()
    return [name for name in verdict.resources if _names(verdict.error, name)] or list(verdict.resources)


def _names(text: str, name: str) -> bool:
    """True when ``text`` holds ``name`` as a word of its own: Envoy writes ``… cluster(s) <name>: <reason>``."""
    return re.search(rf"(?<![\w.|:-]){re.escape(name)}(?![\w|-]|[.:]\w)", text) is not None


def _rejection(verdict: Verdict, name: str, now: datetime) -> Rejection:
    version = verdict.resources.get(name, "")
    return Rejection(short_name(verdict.type_url), name, version, verdict.error[:MAX_REASON], now)
