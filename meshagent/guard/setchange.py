"""A few addresses more or less in the sets of a table, as messages to the kernel. Pure.

Through libnftables that takes several times as long: for each transaction it first asks the kernel for all tables,
chains, sets and objects there are, those of others too.
"""

from collections.abc import Iterator, Mapping

from meshagent.guard import elements
from meshagent.guard.elements import Change
from meshagent.guard.nftquery import attribute, table_body
from meshagent.guard.transaction import CREATE, Message

#: In one message, whose list may hold 64 KiB; more go through libnftables, which makes room in the socket for them.
MOST_KEYS = 1_000

_NEW_ELEMENTS, _DELETE_ELEMENTS = 12, 14  # NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM
_LIST_SET, _LIST_ELEMENTS = 2, 3  # NFTA_SET_ELEM_LIST_*; the table's name is attribute 1 in every message
_ELEMENT, _KEY, _VALUE = 1, 1, 1  # NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE
_NESTED = 0x8000  # NLA_F_NESTED


def fits(changes: Mapping[str, Change]) -> bool:
    """Whether ``messages`` can say it."""
    return all(
        len(packed) // elements.width(name) <= MOST_KEYS
        for name, change in changes.items()
        for packed in (change.add, change.delete)
    )


def messages(table: str, changes: Mapping[str, Change]) -> list[Message]:
    """What goes first, what comes second, as in ``elements.change_lines``: an address may do both."""
    return [message for name, change in changes.items() for message in _of_set(table, name, change)]


def _of_set(table: str, name: str, change: Change) -> Iterator[Message]:
    for kind, packed, flags in ((_DELETE_ELEMENTS, change.delete, 0), (_NEW_ELEMENTS, change.add, CREATE)):
        if packed:
            listed = b"".join(_element(key) for key in elements.keys(name, packed))
            naming = attribute(_LIST_SET, name.encode() + b"\0")
            yield Message(kind, table_body(table, naming, attribute(_LIST_ELEMENTS | _NESTED, listed)), flags)


def _element(key: bytes) -> bytes:
    """``addr . port``: each part of a concatenation fills whole registers of four bytes."""
    value = attribute(_VALUE, key + b"\0\0")
    return attribute(_ELEMENT | _NESTED, attribute(_KEY | _NESTED, value))
