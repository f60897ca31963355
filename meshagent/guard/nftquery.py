"""A table of nftables, asked of the kernel itself: for where libnftables is gone, or can't read what is asked.

One NFT_MSG_GETTABLE on a netlink socket (linux/netfilter/nf_tables.h); a kernel without nf_tables has no table.
"""

import contextlib
import socket
import struct
from collections.abc import Iterator

NETLINK_NETFILTER = 12
TABLE_NAME, TABLE_FLAGS = 1, 2  # NFTA_TABLE_*
#: NFT_TABLE_F_OWNER (kernel 5.12) and NFT_TABLE_F_PERSIST (6.9).
OWNER, PERSIST = 2, 4

_GETTABLE = (10 << 8) | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_INET = 1  # NFPROTO_INET
_REQUEST = 1  # NLM_F_REQUEST
_ERROR = 2  # NLMSG_ERROR
HEAD = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_ATTRIBUTE = struct.Struct("=HH")


class Asker:
    """A socket that asks and stays open, in the network namespace of the first question.

    When a socket of this family closes, the kernel first frees everything that earlier transactions deleted, and waits
    for that (``nft_rcv_nl_event``): 5 ms with the rules of one host, kernel 6.18. So who asks often keeps it open.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._sequence = 0

    def flags(self, name: str) -> int | None:
        """The flags of ``table inet name``; None where there is none, or where that can't be asked."""
        try:
            answer = self._ask(table_body(name))
        except OSError:
            self.close()
            return None
        if HEAD.unpack_from(answer)[1] == _ERROR:
            return None
        found = dict(_attributes(answer[HEAD.size + 4 : HEAD.unpack_from(answer)[0]]))
        return int.from_bytes(found.get(TABLE_FLAGS, b""), "big")

    def exists(self, name: str) -> bool:
        """Whether ``table inet name`` is there; False where that can't be asked."""
        return self.flags(name) is not None

    def _ask(self, body: bytes) -> bytes:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
            self._socket.settimeout(1.0)
        self._sequence += 1
        self._socket.send(HEAD.pack(HEAD.size + len(body), _GETTABLE, _REQUEST, self._sequence, 0) + body)
        while True:  # an answer that came too late for an earlier question is not this one's
            answer = self._socket.recv(1 << 16)
            if HEAD.unpack_from(answer)[3] == self._sequence:
                return answer

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def inet_table_flags(name: str) -> int | None:
    """``Asker.flags`` for who asks once."""
    with contextlib.closing(Asker()) as asker:
        return asker.flags(name)


def inet_table_exists(name: str) -> bool:
    """``Asker.exists`` for who asks once."""
    return inet_table_flags(name) is not None


def table_body(name: str, *more: bytes) -> bytes:
    """What follows the header of a message about ``table inet name``: nfgenmsg, then attributes."""
    return struct.pack("=BBH", _INET, 0, 0) + attribute(TABLE_NAME, name.encode() + b"\0") + b"".join(more)


def attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3
