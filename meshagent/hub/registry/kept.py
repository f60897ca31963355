"""How an announcement is kept, so that a hub's restart keeps every endpoint: as the very message it came in.

A message reads back in any later version (fields are only added), and goes through the same validation again.
"""

from dataclasses import replace

from google.protobuf.message import DecodeError

from meshagent.model.errors import UsageError
from meshagent.protocol.announce import Announced, announcement_message, parse_announcement
from meshagent.protocol.pb import meshagent_v1_pb2 as pb


def to_bytes(announced: Announced) -> bytes:
    """Equal states give equal bytes: the generation, which only counts, is left out."""
    message = announcement_message(replace(announced, generation=0))
    kept: bytes = message.SerializeToString(deterministic=True)
    return kept


def from_bytes(kept: bytes) -> Announced | None:
    """What ``to_bytes`` wrote; None for nothing or for what can't be read (the host says it again)."""
    if not kept:
        return None
    try:
        return parse_announcement(pb.Announcement.FromString(kept))
    except (DecodeError, UsageError):
        return None
