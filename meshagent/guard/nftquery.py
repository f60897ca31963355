"""A table of nftables, asked of the kernel itself: for where libnftables is gone, or can't read what is asked.

One NFT_MSG_GETTABLE on a netlink socket (linux/netfilter/nf_tables.h); a kernel without nf_tables has no table.
"""

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


def inet_table_exists(name: str) -> bool:
    """Whether ``table inet name`` exists in this network namespace; False where that can't be asked."""
    return inet_table_flags(name) is not None


def inet_table_flags(name: str) -> int | None:
    """The flags of ``table inet name``; None where there is none, or where that can't be asked."""
    body = table_body(name)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as asked:
            asked.settimeout(1.0)
            asked.send(HEAD.pack(HEAD.size + len(body), _GETTABLE, _REQUEST, 1, 0) + body)
            answer = asked.recv(1 << 16)
    except OSError:
        return None
    if HEAD.unpack_from(answer)[1] == _ERROR:
        return None
    found = dict(_attributes(answer[HEAD.size + 4 : HEAD.unpack_from(answer)[0]]))
    return int.from_bytes(found.get(TABLE_FLAGS, b""), "big")


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
