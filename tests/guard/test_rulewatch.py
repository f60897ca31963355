"""The kernel's announcements of who changed rules."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.guard.rulewatch import Announced, Announcements, Watch
from meshagent.lab.waiting import wait_until


def nft(text: str) -> None:
    subprocess.run(["nft", text], check=True)


@pytest.mark.root
def test_a_change_of_our_table_names_the_program_that_made_it() -> None:
    """In the namespace the tests run in; the table is gone before the next test."""
    watch = Watch("watched")
    nft("add table inet watched; delete table inet watched")

    def heard() -> Announced | None:
        return watch.read()[0]

    done = wait_until(heard, 2)
    assert done is not None and done.name == "nft" and done.pid > 0
    assert done.tables == {"watched"} == done.made
    watch.close()


@pytest.mark.root
def test_changes_of_other_tables_even_with_names_like_ours_are_not_heard() -> None:
    watch = Watch("watched")
    nft("add table inet watched_too; add table inet other; add chain inet other watched")
    nft("delete table inet other; delete table inet watched_too")
    assert watch.read() == (None, False)
    watch.close()


@pytest.mark.root
def test_every_kind_of_change_of_a_table_is_heard() -> None:
    nft("add table inet watched; add chain inet watched c; add set inet watched s { type inet_service; }")
    watch = Watch("watched")
    try:
        for text in (
            "add rule inet watched c accept",
            "flush chain inet watched c",
            "add element inet watched s { 80 }",
            "delete element inet watched s { 80 }",
            "add chain inet watched d",
            "delete set inet watched s",
        ):
            nft(text)
            assert wait_until(lambda: watch.read()[0], 2).tables == {"watched"}, text
    finally:
        watch.close()
        nft("delete table inet watched")


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_a_mangled_announcement_is_no_crash(datagrams: list[bytes]) -> None:
    announcements = Announcements("watched")
    for data in datagrams:
        for done in announcements.feed(data):
            assert isinstance(done.pid, int) and isinstance(done.name, str)
