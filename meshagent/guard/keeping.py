"""Tables that outlive their owner: ``flags owner,persist``, kernel 6.9 and newer.

While its owner lives nobody else can touch such a table. When the owner's socket closes the table stays, without an
owner, and the next one who asks for the same flags takes it over with all that is in it. nft 1.0.6 can't write the
flag, and refuses nothing else about such a table as long as it isn't asked to define it. So the empty table is made, or
taken over, by one message of our own, over the very socket that libnftables then fills it through: the kernel tells
owners by the socket's port. Neither flag can be added to a table that was made without it, or taken away (kernel 6.18:
EOPNOTSUPP).
"""

import struct

from meshagent.guard import transaction
from meshagent.guard.nftquery import OWNER, PERSIST, TABLE_FLAGS, attribute, table_body
from meshagent.guard.transaction import CREATE, Message

_NEWTABLE = 0  # NFT_MSG_NEWTABLE


def keep(descriptor: int, table: str) -> None:
    """Make ``table inet NAME`` one that is owned by this socket and outlives it, or take it over; else ``OSError``.

    Done again it changes nothing. The socket is one of libnftables, idle.
    """
    transaction.run(descriptor, [_kept(table)])


def can_keep(descriptor: int, table: str) -> bool:
    """Whether this kernel knows such tables: a dry run."""
    try:
        transaction.run(descriptor, [_kept(table)], commit=False)
    except OSError:
        return False
    return True


def _kept(table: str) -> Message:
    return Message(_NEWTABLE, table_body(table, attribute(TABLE_FLAGS, struct.pack(">I", OWNER | PERSIST))), CREATE)
