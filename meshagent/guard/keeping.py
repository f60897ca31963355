"""Tables that outlive their owner: ``flags owner,persist``, kernel 6.9 and newer.

While its owner lives nobody else can touch such a table. When the owner's socket closes the table stays, without an
owner, and the next one who asks for the same flags takes it over with all that is in it. nft 1.0.6 can't write the
flag, and refuses nothing else about such a table as long as it isn't asked to define it. So the empty table is made, or
taken over, by one message of our own, over the very socket that libnftables then fills it through: the kernel tells
owners by the socket's port. Neither flag can be added to a table that was made without it, or taken away (kernel 6.18:
EOPNOTSUPP).
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator

from meshagent.guard.nftquery import HEAD, OWNER, PERSIST, TABLE_FLAGS, attribute, table_body

_BEGIN, _END, _NEWTABLE = 16, 17, 10 << 8  # NFNL_MSG_BATCH_BEGIN, _END; NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWTABLE
_REQUEST, _ACK, _CREATE = 0x1, 0x4, 0x400  # NLM_F_*
_BATCH = struct.pack("=BBH", 0, 0, socket.htons(10))  # nfgenmsg with NFNL_SUBSYS_NFTABLES as res_id
_ERROR = 2  # NLMSG_ERROR, also an acknowledgement
_SEQUENCE = 2


def keep(descriptor: int, table: str) -> None:
    """Make ``table inet NAME`` one that is owned by this socket and outlives it, or take it over; else ``OSError``.

    Done again it changes nothing. The socket is one of libnftables, idle; nothing is left unread in it.
    """
    _run(descriptor, table, commit=True)


def can_keep(descriptor: int, table: str) -> bool:
    """Whether this kernel knows such tables. A dry run: a batch that doesn't end is judged and thrown away."""
    try:
        _run(descriptor, table, commit=False)
    except OSError:
        return False
    return True


def _run(descriptor: int, table: str, *, commit: bool) -> None:
    flags = attribute(TABLE_FLAGS, struct.pack(">I", OWNER | PERSIST))
    batch = _message(_BEGIN, _REQUEST, 1, _BATCH)
    batch += _message(_NEWTABLE, _REQUEST | _ACK | _CREATE, _SEQUENCE, table_body(table, flags))
    batch += _message(_END, _REQUEST, 3, _BATCH) if commit else b""
    with socket.socket(fileno=os.dup(descriptor)) as netlink:
        netlink.sendto(batch, (0, 0))
        answers = dict(_answers(netlink))
    failed = next((number for number in answers.values() if number), 0)
    if failed or _SEQUENCE not in answers:
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
