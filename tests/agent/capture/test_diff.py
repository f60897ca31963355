"""The least change from one ruleset to the next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.agent.capture import diff, nft
from meshagent.guard import text
from meshagent.model.marks import TABLE
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided, declared, host_facts


def test_a_new_address_is_one_added_element() -> None:
    before = decided(Posture.OUTBOUND, "240.240.0.7:80")
    after = decided(Posture.OUTBOUND, "240.240.0.7:80", "10.1.2.3:3306")
    step = diff.step(before, after)
    assert not step.replace
    assert step.lines == "add element inet meshagent claimed4 { 10.1.2.3 . 3306 }\n"
    assert step.ruleset == nft.render(after)


def test_what_goes_is_deleted_before_what_comes_is_added() -> None:
    step = diff.step(decided(Posture.OUTBOUND, "240.240.0.7:80"), decided(Posture.OUTBOUND, "240.240.0.8:80"))
    assert step.lines.splitlines() == [
        "delete element inet meshagent virtual4 { 240.240.0.7 . 80 }",
        "add element inet meshagent virtual4 { 240.240.0.8 . 80 }",
    ]


def test_nothing_changed_is_nothing_to_do() -> None:
    intent = decided(Posture.OUTBOUND, "240.240.0.7:80")
    step = diff.step(intent, intent)
    assert (step.replace, step.lines) == (False, "")


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
    assert (step.replace, step.lines) == (False, "")


PAIRS = st.sets(st.integers(1, 2000).map(lambda number: f"10.1.{number // 250}.{number % 250 + 1}:80"), max_size=40)


@given(PAIRS, PAIRS)
def test_the_steps_lead_from_one_set_to_the_other(old: set[str], new: set[str]) -> None:
    before, after = decided(Posture.OUTBOUND, *old), decided(Posture.OUTBOUND, *new)
    step = diff.step(before, after)
    text.require_updates(step.lines, TABLE)

    elements = set(nft.address_sets(before)["claimed4"])
    for line in step.lines.splitlines():
        changed = set(line.partition("{ ")[2].removesuffix(" }").split(", "))
        elements = elements - changed if line.startswith("delete") else elements | changed
    assert elements == set(nft.address_sets(after)["claimed4"])
