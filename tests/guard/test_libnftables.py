"""The library by ctypes, in the network namespace the tests run in."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.guard.libnftables import Context, NftError

pytestmark = pytest.mark.root

TABLE = "table inet shimmed {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1 }\n\t}\n}\n"


@pytest.fixture
def context() -> Iterator[Context]:
    made = Context()
    yield made
    made.run("table inet shimmed\ndelete table inet shimmed\n")
    made.close()


def test_a_batch_is_all_or_nothing(context: Context) -> None:
    with pytest.raises(NftError, match="No such file"):
        context.run(TABLE + "add element inet shimmed absent { 10.0.0.2 }\n")
    assert not context.exists("shimmed")
    context.run(TABLE)
    assert context.exists("shimmed")


def test_a_check_commits_nothing_also_after_an_error(context: Context) -> None:
    context.check(TABLE)
    with pytest.raises(NftError):
        context.check("table inet shimmed {\n\tset s {\n\t}\n}\n")
    assert not context.exists("shimmed")
    context.run(TABLE)
    assert context.exists("shimmed"), "the dry run is over"


def test_listings_are_json_and_absence_is_none(context: Context) -> None:
    context.run(TABLE)
    assert '"10.0.0.1"' in (context.table_json("shimmed") or "")
    assert '"10.0.0.1"' in (context.set_json("shimmed", "s") or "")
    assert context.table_json("absent") is None
    assert context.set_json("shimmed", "absent") is None


def test_a_syntax_error_is_one_line(context: Context) -> None:
    with pytest.raises(NftError) as error:
        context.run("nonsense\nmore nonsense\n")
    assert "syntax error" in str(error.value) and "\n" not in str(error.value)


def test_an_owned_table_lives_as_long_as_its_context() -> None:
    owner = Context()
    owner.run("table inet shimmed { flags owner; }\n")
    other = Context()
    with pytest.raises(NftError, match="not permitted"):
        other.run("delete table inet shimmed\n")
    owner.close()
    assert "shimmed" not in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    other.close()


def test_a_thousand_rounds_do_not_grow(context: Context) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    def round_trip() -> None:
        context.run("table inet shimmed\ndelete table inet shimmed\n" + TABLE)
        context.table_json("shimmed")

    for _ in range(100):
        round_trip()
    before = resident()
    for _ in range(1000):
        round_trip()
    assert resident() - before < 256, "pages of 4 KiB"


_MANY_CONTEXTS = """
from pathlib import Path
from meshagent.guard.libnftables import Context
Context().close()
before = sorted(Path("/proc/self/fd").iterdir())
for _ in range(20):
    Context().close()
assert sorted(Path("/proc/self/fd").iterdir()) == before
"""


def test_a_context_closes_all_that_it_opened() -> None:
    """In a process of its own: here others open and close files meanwhile."""
    subprocess.run([sys.executable, "-c", _MANY_CONTEXTS], check=True)


def test_a_context_that_adopts_the_socket_of_another_owns_its_tables() -> None:
    first = Context()
    first.run("table inet shimmed { flags owner; }\n")
    second = Context()
    second.adopt(os.dup(first.descriptor))
    first.close()
    assert second.exists("shimmed"), "the socket is still open"
    second.run("delete table inet shimmed\n")
    second.close()
