"""Batches of our own over libnftables' socket."""

import pytest

from meshagent.guard import transaction
from meshagent.guard.libnftables import Context
from meshagent.guard.nftquery import inet_table_exists, table_body
from meshagent.guard.transaction import CREATE, Message

pytestmark = pytest.mark.root

_NEWTABLE, _DELTABLE = 0, 2  # NFT_MSG_*


def test_a_batch_is_done_whole_or_not_at_all() -> None:
    context = Context()
    made, missing = Message(_NEWTABLE, table_body("made"), CREATE), Message(_DELTABLE, table_body("missing"))
    with pytest.raises(FileNotFoundError):
        transaction.run(context.descriptor, [made, missing])
    assert not inet_table_exists("made")
    transaction.run(context.descriptor, [made])
    assert inet_table_exists("made")
    context.run("delete table inet made\n")  # libnftables' own use of the socket isn't disturbed
    context.close()


def test_a_batch_without_its_end_is_only_judged() -> None:
    context = Context()
    transaction.run(context.descriptor, [Message(_NEWTABLE, table_body("judged"), CREATE)], commit=False)
    assert not inet_table_exists("judged")
    with pytest.raises(FileNotFoundError):
        transaction.run(context.descriptor, [Message(_DELTABLE, table_body("missing"))], commit=False)
    context.close()
