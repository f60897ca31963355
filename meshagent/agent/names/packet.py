"""The few pieces of DNS wire format that are needed here (RFC 1035 section 4, RFC 6891). Pure.

A full decoder would cost 6 MB of memory and 100 µs a query; a forwarder needs the header, one question and the OPT
record, and must not trip over anything else.
"""

import struct
from dataclasses import dataclass

A, SOA, AAAA, OPT, ANY = 1, 6, 28, 41, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
BADVERS = 16

QR, AA, TC, RD, RA, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0010
OPCODE = 0x7800

HEADER = struct.Struct("!HHHHHH")
_TYPE_CLASS = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, length of the data

#: What we tell others to send us at most: no fragments on any path (DNS flag day 2020).
OUR_UDP_SIZE = 1232


class MalformedError(Exception):
    """The bytes are not a DNS message that can be read."""


@dataclass(frozen=True, slots=True)
class Edns:
    """What a query's OPT record says: UDP payload size, version, and the DNSSEC-OK bit as it stands in the TTL."""

    size: int
    version: int
    dnssec_ok: int


@dataclass(frozen=True, slots=True)
class Query:
    """Header and question of a query; ``name`` is in wire form and lower case, the question ends at ``end``."""

    id: int
    flags: int
    counts: tuple[int, int, int]
    name: bytes
    type: int
    cls: int
    end: int


def encode_name(name: str) -> bytes:
    """Wire form, lower case: ``cache.mesh.`` -> ``5cache4mesh0``. Raises ``ValueError`` for an impossible name."""
    labels = [label.encode("ascii") for label in name.rstrip(".").lower().split(".")]
    if any(not 1 <= len(label) <= 63 for label in labels):
        raise ValueError("a label has 1 to 63 octets")
    wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if len(wire) > 255:
        raise ValueError("a name has at most 255 octets")
    return wire


def name_end(data: bytes, start: int) -> int:
    """Index behind the uncompressed name at ``start``. Raises ``MalformedError`` (also for a compression pointer)."""
    position, size = start, len(data)
    while position < size:
        length = data[position]
        if length == 0:
            if position + 1 - start > 255:
                raise MalformedError
            return position + 1
        if length > 63:
            raise MalformedError
        position += 1 + length
    raise MalformedError


def parse_query(data: bytes) -> Query:
    """Header and question. Raises ``MalformedError`` unless there is exactly one readable question."""
    if len(data) < 12:
        raise MalformedError
    ident, flags, questions, answers, authority, additional = HEADER.unpack_from(data)
    if questions != 1:
        raise MalformedError
    end = name_end(data, 12)
    if len(data) < end + 4:
        raise MalformedError
    kind, cls = _TYPE_CLASS.unpack_from(data, end)
    # bytes.lower() leaves length octets alone: they are below 64, letters are not
    return Query(ident, flags, (answers, authority, additional), data[12:end].lower(), kind, cls, end + 4)


def parse_edns(data: bytes, query: Query) -> Edns | None:
    """The OPT record behind the question, None without one. Raises ``MalformedError``, also for a second one."""
    found: Edns | None = None
    position = query.end
    for _ in range(sum(query.counts)):
        position = _skip_name(data, position)
        if len(data) < position + 10:
            raise MalformedError
        kind, size, ttl, length = _RECORD.unpack_from(data, position)
        position += 10 + length
        if position > len(data):
            raise MalformedError
        if kind == OPT:
            if found:
                raise MalformedError
            found = Edns(size, ttl >> 16 & 0xFF, ttl & 0x8000)
    return found


def _skip_name(data: bytes, position: int) -> int:
    while position < len(data):
        length = data[position]
        if length >= 0xC0:
            return position + 2
        if length > 63:
            raise MalformedError
        position += 1 + length
        if length == 0:
            return position
    raise MalformedError


def record(owner: bytes, kind: int, ttl: int, data: bytes) -> bytes:
    """One resource record of class IN; ``owner`` in wire form or as a pointer."""
    return owner + _RECORD.pack(kind, IN, ttl, len(data)) + data


def opt_record(rcode: int, dnssec_ok: int) -> bytes:
    """Our OPT record; the upper bits of an extended ``rcode`` travel in its TTL (RFC 6891 section 6.1.3)."""
    return b"\0" + _RECORD.pack(OPT, OUR_UDP_SIZE, (rcode >> 4) << 24 | dnssec_ok, 0)


def pointer(offset: int) -> bytes:
    """A compression pointer to ``offset`` of the message."""
    return (0xC000 | offset).to_bytes(2, "big")


def error_reply(query: bytes, rcode: int) -> bytes:
    """``query`` sent back as an error, with its question where that can be read; at least 12 bytes of query needed."""
    flags = int.from_bytes(query[2:4], "big")
    try:
        end = parse_query(query).end
    except MalformedError:
        end = 12
    out = (flags & (OPCODE | RD | CD)) | QR | RA | rcode
    return query[:2] + struct.pack("!HHHHH", out, 1 if end > 12 else 0, 0, 0, 0) + query[12:end]


def answers_question(reply: bytes, query: bytes, ident: int) -> bool:
    """True if ``reply`` is a response to ``query`` sent under ``ident``: id, QR bit and question agree.

    Case is not compared (servers that rewrite it exist); a question may be missing only from an error.
    """
    if len(reply) < 12 or int.from_bytes(reply[:2], "big") != ident or not reply[2] & 0x80:
        return False
    if reply[4:6] == b"\0\0":
        return reply[3] & 0x0F != NOERROR
    try:
        end = parse_query(query).end
    except MalformedError:  # an UPDATE or the like, passed on unread: the id must do
        return True
    return reply[4:6] == b"\0\1" and reply[12:end].lower() == query[12:end].lower()
