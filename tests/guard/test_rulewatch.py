"""The kernel's announcements of who changed rules."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.guard import rulewatch
from meshagent.lab.waiting import wait_until


@pytest.mark.root
def test_a_change_names_the_program_that_made_it() -> None:
    """In the namespace the tests run in; the table is gone before the next test."""
    with rulewatch.open_watch() as watch:
        subprocess.run(["nft", "add table inet watched; delete table inet watched"], check=True)

        def heard() -> list[tuple[int, str]]:
            return [who for who in rulewatch.changes(watch.recv(1 << 16)) if who[1] == "nft"]

        (pid, name) = wait_until(heard, 2)[0]
        assert name == "nft" and pid > 0


@given(st.binary(max_size=300))
def test_a_mangled_announcement_is_no_change_and_no_crash(data: bytes) -> None:
    for pid, name in rulewatch.changes(data):
        assert isinstance(pid, int) and isinstance(name, str)
