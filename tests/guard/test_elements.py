"""Addresses as bytes: read, written, merged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.guard import elements
from meshagent.guard.elements import Change
from meshagent.guard.wire import RequestError

ONE, TWO = bytes((10, 0, 0, 1, 0, 80)), bytes((10, 0, 0, 2, 12, 234))
KEYS = st.sets(st.binary(min_size=6, max_size=6), max_size=150)


def test_keys_are_written_as_nft_writes_them() -> None:
    assert elements.texts("claimed4", ONE + TWO) == ["10.0.0.1 . 80", "10.0.0.2 . 3306"]
    assert elements.texts("virtual6", bytes((0x20, 1, 0, 2, *bytes(11), 7, 1, 187))) == ["2001:2::7 . 443"]


def test_what_goes_is_deleted_before_what_comes_is_added() -> None:
    lines = elements.change_lines("meshagent", {"claimed4": Change(add=ONE, delete=TWO)})
    assert lines == (
        "delete element inet meshagent claimed4 { 10.0.0.2 . 3306 }\n"
        "add element inet meshagent claimed4 { 10.0.0.1 . 80 }\n"
    )
    assert elements.change_lines("meshagent", {"claimed4": Change()}) == ""


@given(KEYS, KEYS, KEYS)
def test_a_change_leads_to_the_sorted_union_without_what_went(
    old: set[bytes], come: set[bytes], gone: set[bytes]
) -> None:
    change = Change(add=b"".join(come), delete=b"".join(gone))
    found = elements.merged("claimed4", b"".join(sorted(old)), change)
    assert found == b"".join(sorted((old - gone) | come))


@pytest.mark.parametrize(
    ("name", "packed"), [("claimed4", ONE + b"x"), ("claimed", ONE), ("a4; flush ruleset", ONE), ("virtual6", ONE)]
)
def test_half_keys_and_odd_names_are_refused(name: str, packed: bytes) -> None:
    with pytest.raises(RequestError):
        elements.require(name, packed)
