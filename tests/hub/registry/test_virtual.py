"""Virtual addresses are stable, unique, and not given to others as long as there are fresh ones."""

from datetime import timedelta
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.hub.registry.virtual import LAST_INDEX, Wanted, addresses_of, allocate
from meshagent.hub.store.rows import ServiceRow
from meshagent.model.address import VIRTUAL4, VIRTUAL6
from meshagent.model.errors import MeshagentError
from tests.hub.hosts import NOW

WEB = Wanted("default", "web")
NONE: frozenset[str] = frozenset()


def full(unused: str = "") -> dict[str, ServiceRow]:
    rows = {f"s{i}": ServiceRow(f"s{i}", i, "default", "web", NOW) for i in range(1, LAST_INDEX + 1)}
    if unused:
        row = rows[unused]
        rows[unused] = ServiceRow(row.host, row.index, "default", "web", NOW - timedelta(days=1))
    return rows


def test_both_ranges_hold_every_index_without_their_edges() -> None:
    assert addresses_of(1) == (ip_address("240.240.0.1"), ip_address("2001:2::1"))
    assert addresses_of(LAST_INDEX) == (ip_address("240.240.255.254"), ip_address("2001:2::fffe"))


@given(st.lists(st.lists(st.sampled_from([f"svc-{n}" for n in range(30)]), max_size=8), max_size=8))
def test_whoever_comes_and_goes_a_name_keeps_its_address_and_no_two_share_one(rounds: list[list[str]]) -> None:
    rows: dict[str, ServiceRow] = {}
    first_seen: dict[str, int] = {}
    for names in rounds:
        released = frozenset(rows) - frozenset(names)
        rows = dict(allocate(rows, dict.fromkeys(names, WEB), released, lambda: NONE, NOW).rows)
        for name, row in rows.items():
            assert first_seen.setdefault(name, row.index) == row.index
    assert len({row.index for row in rows.values()}) == len(rows)
    assert all(addresses_of(r.index)[0] in VIRTUAL4 and addresses_of(r.index)[1] in VIRTUAL6 for r in rows.values())


def test_only_when_all_are_given_out_the_one_unused_for_longest_gives_up_its_address() -> None:
    plan = allocate(full("s77"), {"new": WEB}, NONE, lambda: frozenset({"s1"}), NOW)
    assert plan.dropped == ("s77",) and plan.rows["new"].index == 77


def test_when_all_are_in_use_it_says_so() -> None:
    rows = full()
    with pytest.raises(MeshagentError) as caught:
        allocate(rows, {"new": WEB}, NONE, lambda: frozenset(rows), NOW)
    assert caught.value.code == "no-virtual-address"


def test_a_service_entry_takes_no_ownership_away() -> None:
    rows = dict(allocate({}, {"a": WEB}, NONE, lambda: NONE, NOW).rows)
    plan = allocate(rows, {"a": Wanted("other")}, NONE, lambda: NONE, NOW)
    assert not plan.changed and plan.rows["a"].service_account == "web"
