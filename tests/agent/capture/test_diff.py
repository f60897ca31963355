"""The least change from one ruleset to the next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.agent.capture import diff, nft
from meshagent.guard import elements
from meshagent.model.marks import TABLE
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided, declared, host_facts


def test_a_new_address_is_one_added_element() -> None:
    before = decided(Posture.OUTBOUND, "240.240.0.7:80")
    after = decided(Posture.OUTBOUND, "240.240.0.7:80", "10.1.2.3:3306")
    step = diff.step(before, after)
    assert not step.replace
    assert elements.change_lines(TABLE, step.changes) == ("add element inet meshagent claimed4 { 10.1.2.3 . 3306 }\n")
    assert step.ruleset == nft.render(after)


def test_what_goes_is_deleted_before_what_comes_is_added() -> None:
    step = diff.step(decided(Posture.OUTBOUND, "240.240.0.7:80"), decided(Posture.OUTBOUND, "240.240.0.8:80"))
    assert elements.change_lines(TABLE, step.changes).splitlines() == [
        "delete element inet meshagent virtual4 { 240.240.0.7 . 80 }",
        "add element inet meshagent virtual4 { 240.240.0.8 . 80 }",
    ]


def test_nothing_changed_is_nothing_to_do() -> None:
    intent = decided(Posture.OUTBOUND, "240.240.0.7:80")
    step = diff.step(intent, intent)
    assert (step.replace, step.changes) == (False, {})


@pytest.mark.parametrize(
    "after",
    [
        decided(Posture.STRICT),
        decided(Posture.PERMISSIVE, services=(declared("web", 80),)),
        decided(Posture.PERMISSIVE, capture_dns=True),
        decided(Posture.PERMISSIVE, facts=host_facts(ipv6_usable=False)),
        decided(Posture.OBSERVE, draining=True),
        decided(Posture.OBSERVE),
    ],
)
def test_anything_but_addresses_replaces_the_whole(after: object) -> None:
    assert diff.step(decided(Posture.PERMISSIVE), after).replace  # type: ignore[arg-type]


def test_an_unknown_kernel_is_replaced() -> None:
    assert diff.step(None, decided(Posture.OUTBOUND)).replace


def test_the_reasons_for_refusals_are_not_in_the_rules() -> None:
    step = diff.step(decided(Posture.OUTBOUND), decided(Posture.OUTBOUND, "127.0.0.1:80"))
    assert (step.replace, step.changes) == (False, {})


PAIRS = st.sets(st.integers(1, 2000).map(lambda number: f"10.1.{number // 250}.{number % 250 + 1}:80"), max_size=40)


@given(PAIRS, PAIRS)
def test_the_steps_lead_from_one_set_to_the_other(old: set[str], new: set[str]) -> None:
    before, after = decided(Posture.OUTBOUND, *old), decided(Posture.OUTBOUND, *new)
    step = diff.step(before, after)
    assert step.ruleset == nft.render(after)

    found = nft.packed_sets(before)["claimed4"]
    if change := step.changes.get("claimed4"):
        found = elements.merged("claimed4", found, change)
    assert found == nft.packed_sets(after)["claimed4"]


def test_one_change_among_thousands_is_found_without_looking_at_each() -> None:
    many = [f"10.{number // 250}.{number % 250 + 1}.1:80" for number in range(2000)]
    intents = [decided(Posture.OUTBOUND, *many, *more) for more in ((), ("10.3.7.2:443",))]
    changes = diff.step(*intents).changes
    assert elements.change_lines(TABLE, changes) == "add element inet meshagent claimed4 { 10.3.7.2 . 443 }\n"
