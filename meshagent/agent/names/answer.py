"""One DNS query in, one reply out, or the verdict that it isn't ours. Pure: no socket, no clock.

The reply to a mesh name depends only on the query's bytes behind its id, so replies are remembered under those bytes:
nearly every query of a program is one it has asked before. A new name table means a new ``Answerer``.
"""

import struct
from enum import Enum

from meshagent.agent.names import packet
from meshagent.agent.names.packet import AAAA, ANY, IN, SOA, A, Edns, MalformedError, Query
from meshagent.agent.names.table import Absent, Addresses, NameIndex

#: A virtual address is stable and not reused soon; 30 s bounds how long a moved name is remembered.
TTL = 30
#: How long "no such name" is remembered (RFC 2308): a service just announced should be found at once.
NEGATIVE_TTL = 5

#: What fits a UDP reply without EDNS (RFC 1035 section 2.3.4), the most we send with it, and what TCP carries.
UDP_SIZE, EDNS_SIZE, TCP_SIZE = 512, 4096, 65535

_REMEMBERED = 4096  # replies; 300 bytes each with their query, so 1.2 MB at most
_LONGEST_REMEMBERED = 512


class Verdict(Enum):
    """What to do with a query that gets no reply from here."""

    FORWARD = "forward"
    DROP = "drop"


class Answerer:
    """Answers from one index; remembers replies (bounded)."""

    def __init__(self, index: NameIndex) -> None:
        self._index = index
        self._known: dict[bytes, bytes] = {}

    def udp(self, query: bytes) -> bytes | Verdict:
        """The reply to a datagram, cut to what the client takes."""
        known = self._known.get(query[2:])
        if known is not None:
            return query[:2] + known
        reply = answer(query, self._index)
        if isinstance(reply, bytes) and len(query) <= _LONGEST_REMEMBERED:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[query[2:]] = reply[2:]
        return reply

    def tcp(self, query: bytes) -> bytes | Verdict:
        """The reply to a message of a TCP connection (without its length prefix)."""
        return answer(query, self._index, stream=True)


def answer(query: bytes, index: NameIndex, *, stream: bool = False) -> bytes | Verdict:
    """Judge one message. What isn't a query is dropped, an unreadable question is FORMERR, foreign names go on."""
    if len(query) < 12 or query[2] & 0x80:
        return Verdict.DROP  # a response to a response is how two servers talk for ever
    if query[2] & 0x78:
        return Verdict.FORWARD  # NOTIFY, UPDATE: for the real server to judge
    try:
        asked = packet.parse_query(query)
        found = index.find(asked.name)
        if found is Absent.FOREIGN or asked.cls not in (IN, ANY):
            return Verdict.FORWARD
        edns = packet.parse_edns(query, asked)
    except MalformedError:
        return packet.error_reply(query, packet.FORMERR)
    if edns and edns.version > 0:
        return _message(query, asked, packet.BADVERS, [], [], edns)
    return _fit(query, asked, index, found, edns, TCP_SIZE if stream else _size(edns))


def _size(edns: Edns | None) -> int:
    return UDP_SIZE if edns is None else max(UDP_SIZE, min(edns.size, EDNS_SIZE))


def _fit(
    query: bytes, asked: Query, index: NameIndex, found: Addresses | Absent, edns: Edns | None, size: int
) -> bytes:
    answers = _answers(asked, index, found)
    authority = [] if answers or not index.known else _authority(asked, index)
    rcode = packet.NOERROR
    if found is Absent.UNKNOWN:  # SERVFAIL: ask again; "no such name" would be remembered, and may be wrong
        rcode = packet.NXDOMAIN if index.known else packet.SERVFAIL
    reply = _message(query, asked, rcode, answers, authority, edns)
    if len(reply) <= size:
        return reply
    return _message(query, asked, rcode, [], [], edns, packet.TC)


def _answers(asked: Query, index: NameIndex, found: Addresses | Absent) -> list[bytes]:
    owner = packet.pointer(12)
    if asked.type in (SOA, ANY) and asked.name == index.zone_wire:
        return [packet.record(owner, SOA, NEGATIVE_TTL, _soa(12))]
    if isinstance(found, Absent):
        return []
    records = []
    if asked.type in (A, ANY):
        records += [packet.record(owner, A, TTL, ip.packed) for ip in found.v4]
    if asked.type in (AAAA, ANY):
        records += [packet.record(owner, AAAA, TTL, ip.packed) for ip in found.v6]
    return records


def _authority(asked: Query, index: NameIndex) -> list[bytes]:
    """The zone's SOA, by which resolvers remember that there is nothing; none for a mesh name outside the zone."""
    offset = index.zone_offset(asked.name)
    if not offset:
        return []
    zone = 12 + offset - 1
    return [packet.record(packet.pointer(zone), SOA, NEGATIVE_TTL, _soa(zone))]


def _soa(zone: int) -> bytes:
    """``ns.<zone> hostmaster.<zone> 1 3600 600 86400 5``; the zone's name is at offset ``zone`` of the message."""
    names = b"\2ns" + packet.pointer(zone) + b"\x0ahostmaster" + packet.pointer(zone)
    return names + struct.pack("!IIIII", 1, 3600, 600, 86400, NEGATIVE_TTL)


def _message(
    query: bytes,
    asked: Query,
    rcode: int,
    answers: list[bytes],
    authority: list[bytes],
    edns: Edns | None,
    more_flags: int = 0,
) -> bytes:
    """Header, the question as it was asked (its case is the client's protection: draft "0x20"), and the sections."""
    kept = asked.flags & (packet.RD | packet.CD)
    flags = packet.QR | packet.AA | packet.RA | kept | more_flags | (rcode & 0x0F)
    head = packet.HEADER.pack(asked.id, flags, 1, len(answers), len(authority), 1 if edns else 0)
    tail = packet.opt_record(rcode, edns.dnssec_ok) if edns else b""
    return b"".join([head, query[12 : asked.end], *answers, *authority, tail])
