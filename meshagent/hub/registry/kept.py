"""How an announcement is kept, so that a hub's restart keeps every endpoint: as the very message it came in.

A message reads back in any later version (fields are only added), and goes through the same validation again. Before
it stands since when the host serves which name: standby databases keep their order over restarts, also while the host
is away (then nothing follows). A zero byte starts it, which no message can start with (protobuf has no field 0).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from google.protobuf.message import DecodeError

from meshagent.model.errors import UsageError
from meshagent.protocol.announce import Announced, announcement_message, parse_announcement
from meshagent.protocol.pb import meshagent_v1_pb2 as pb

_MARK = b"\0"
_END = b"\0"

#: Names per host whose order is remembered; the oldest of those it no longer serves are forgotten first.
MAX_NAMES = 256


@dataclass(frozen=True, slots=True)
class Kept:
    """``announced`` None: it said goodbye, or its lease ran out. ``since``: service host name -> epoch seconds."""

    announced: Announced | None = None
    since: Mapping[str, float] = field(default_factory=dict)


def to_bytes(kept: Kept) -> bytes:
    """Equal states give equal bytes: the generation, which only counts, is left out."""
    head = b""
    if kept.since:
        head = _MARK + json.dumps(dict(kept.since), sort_keys=True).encode() + _END
    if kept.announced is None:
        return head
    message = announcement_message(replace(kept.announced, generation=0))
    body: bytes = message.SerializeToString(deterministic=True)
    return head + body


def from_bytes(data: bytes) -> Kept:
    """What ``to_bytes`` wrote; what can't be read counts as not said (the host says it again)."""
    since: Mapping[str, float] = {}
    if data.startswith(_MARK):
        head, _, data = data[len(_MARK) :].partition(_END)
        since = _read_since(head)
    if not data:
        return Kept(None, since)
    try:
        return Kept(parse_announcement(pb.Announcement.FromString(data)), since)
    except (DecodeError, UsageError):
        return Kept(None, since)


def first_seen(since: Mapping[str, float], names: frozenset[str], now: float) -> dict[str, float]:
    """``since`` with the names that are new, from ``now`` on; names not served at the moment keep their place."""
    grown = {**since, **{name: now for name in sorted(names) if name not in since}}
    spare = sorted((name for name in grown if name not in names), key=lambda name: grown[name])
    for name in spare[: max(0, len(grown) - MAX_NAMES)]:
        del grown[name]
    return grown


def _read_since(text: bytes) -> dict[str, float]:
    try:
        read = json.loads(text)
    except ValueError:
        return {}
    pairs = read.items() if isinstance(read, dict) else ()
    return {name: float(at) for name, at in pairs if isinstance(at, int | float) and math.isfinite(at)}
