"""Who changed rules: the kernel's own announcements on netlink group NFNLGRP_NFTABLES.

Every committed transaction ends with NFT_MSG_NEWGEN, which carries the pid and the name of the program that made it
(linux/netfilter/nf_tables.h, enum nft_gen_attributes; kernel 4.12 or newer). Only that message is decoded.
"""

import socket
import struct
from collections.abc import Iterator

_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7
_SUBSYS_NFTABLES = 10
_NFT_MSG_NEWGEN = 15
_GEN_PROC_PID = 2
_GEN_PROC_NAME = 3

_NLMSG = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_NFGENMSG_SIZE = 4
_ATTRIBUTE = struct.Struct("=HH")

#: Other programs' rulesets announce every element; an overflow is only a reason to look, never an error.
_BUFFER = 1 << 20


def open_watch() -> socket.socket:
    """A non-blocking netlink socket that hears of every committed nft transaction in this network namespace."""
    watch = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER
    )
    watch.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    watch.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
    return watch


def changes(data: bytes) -> Iterator[tuple[int, str]]:
    """Pid and name behind each committed transaction announced in one datagram."""
    position = 0
    while position + _NLMSG.size <= len(data):
        length, kind, _, _, _ = _NLMSG.unpack_from(data, position)
        if length < _NLMSG.size:
            return
        if kind == (_SUBSYS_NFTABLES << 8) | _NFT_MSG_NEWGEN:
            body = data[position + _NLMSG.size + _NFGENMSG_SIZE : position + length]
            attributes = dict(_attributes(body))
            pid = int.from_bytes(attributes.get(_GEN_PROC_PID, b""), "big")
            yield pid, attributes.get(_GEN_PROC_NAME, b"").rstrip(b"\0").decode(errors="replace")
        position += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[position + _ATTRIBUTE.size : position + length]
        position += (length + 3) & ~3
