"""A transaction of nf_tables in our own bytes, over the socket that libnftables opened.

The kernel tells owners of tables by the socket's port, so only that socket may change what is in an owned table. Two
things go this way: what nft's language can't say (keeping.py), and what must be quick (setchange.py). Messages are
those of linux/netfilter/nf_tables.h and nfnetlink.h; a batch is done whole or not at all.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meshagent.guard.nftquery import HEAD

#: NLM_F_CREATE.
CREATE = 0x400

_BEGIN, _END = 16, 17  # NFNL_MSG_BATCH_BEGIN, _END
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_REQUEST, _ACK = 0x1, 0x4  # NLM_F_*
_BATCH = struct.pack("=BBH", 0, 0, socket.htons(_SUBSYSTEM))  # nfgenmsg with the subsystem as res_id
_NETFILTER = 12  # NETLINK_NETFILTER
_ERROR = 2  # NLMSG_ERROR, also an acknowledgement


@dataclass(frozen=True, slots=True)
class Message:
    """One NFT_MSG_* with its flags beyond request and acknowledgement; ``body`` is nfgenmsg and attributes."""

    kind: int
    body: bytes
    flags: int = 0


def run(descriptor: int, messages: Sequence[Message], *, commit: bool = True) -> None:
    """Do it, or with ``commit`` off only let the kernel judge it: a batch that doesn't end is thrown away.

    Raises ``OSError`` with the kernel's reason for the first message that it refuses. The socket is idle before and
    after; nothing is left unread in it.
    """
    batch = _message(_BEGIN, _REQUEST, 1, _BATCH)
    for number, each in enumerate(messages, 2):
        batch += _message(_SUBSYSTEM << 8 | each.kind, _REQUEST | _ACK | each.flags, number, each.body)
    batch += _message(_END, _REQUEST, len(messages) + 2, _BATCH) if commit else b""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER, fileno=descriptor)
    try:
        netlink.sendto(batch, (0, 0))
        answers = dict(_answers(netlink))
    finally:
        netlink.detach()  # it is libnftables' own
    failed = next((number for number in answers.values() if number), 0)
    if failed or any(number not in answers for number in range(2, len(messages) + 2)):
        raise OSError(failed or errno.EIO, os.strerror(failed or errno.EIO))


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return HEAD.pack(HEAD.size + len(body), kind, flags, sequence, 0) + body


def _answers(netlink: socket.socket) -> Iterator[tuple[int, int]]:
    """Sequence and errno of all answers; the kernel gives them before send() returns."""
    while True:
        try:
            data = netlink.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        position = 0
        while position + HEAD.size + 4 <= len(data):
            length, kind, _, sequence, _ = HEAD.unpack_from(data, position)
            if kind == _ERROR:
                yield sequence, -struct.unpack_from("=i", data, position + HEAD.size)[0]
            position += max(HEAD.size, (length + 3) & ~3)
