"""What chains do with one packet, where some matches may hold or not."""

import pytest

from meshagent.agent.judge.packets import Chains, Fate, Holds, Rule, fates

NO, MAYBE, YES = Holds.NO, Holds.MAYBE, Holds.YES
ACCEPTED, REFUSED = Fate.ACCEPTED, Fate.REFUSED
BOTH = {ACCEPTED, REFUSED}


def rules(*pairs: tuple[Holds, str]) -> list[Rule]:
    return [Rule(holds, action) for holds, action in pairs]


@pytest.mark.parametrize(
    ("chains", "expected"),
    [
        ({"in": rules()}, {REFUSED}),
        ({"in": rules((YES, "accept"))}, {ACCEPTED}),
        ({"in": rules((NO, "accept"))}, {REFUSED}),
        ({"in": rules((MAYBE, "accept"))}, BOTH),
        ({"in": rules((YES, ""), (YES, "accept"), (YES, "refuse"))}, {ACCEPTED}),
        ({"in": rules((YES, "return"), (YES, "accept"))}, {REFUSED}),
        ({"in": rules((MAYBE, "return"), (YES, "accept"))}, BOTH),
        ({"in": rules((YES, "jump a"), (YES, "accept")), "a": rules()}, {ACCEPTED}),
        ({"in": rules((YES, "jump a"), (YES, "accept")), "a": rules((YES, "refuse"))}, {REFUSED}),
        ({"in": rules((YES, "jump a"), (YES, "accept")), "a": rules((YES, "return"), (YES, "refuse"))}, {ACCEPTED}),
        ({"in": rules((MAYBE, "jump a"), (YES, "accept")), "a": rules((YES, "refuse"))}, BOTH),
        ({"in": rules((YES, "goto a"), (YES, "accept")), "a": rules()}, {REFUSED}),
        ({"in": rules((YES, "goto a"), (YES, "accept")), "a": rules((YES, "accept"))}, {ACCEPTED}),
        ({"in": rules((MAYBE, "goto a"), (YES, "accept")), "a": rules()}, BOTH),
        ({"in": rules((NO, "jump a"), (YES, "accept")), "a": rules((YES, "refuse"))}, {ACCEPTED}),
        ({"in": rules((YES, "jump elsewhere"), (YES, "accept"))}, {ACCEPTED}),
    ],
)
def test_every_fate_that_is_possible_and_no_other(chains: Chains, expected: set[Fate]) -> None:
    assert fates(chains, "in", REFUSED) == expected


def test_a_policy_that_accepts_lets_in_what_no_rule_refuses() -> None:
    assert fates({"in": rules((NO, "refuse"))}, "in", ACCEPTED) == {ACCEPTED}


def test_an_endless_chain_ends() -> None:
    long = {"in": rules(*[(MAYBE, "jump in2")] * 300), "in2": rules(*[(NO, "accept")] * 300)}
    assert fates(long, "in", ACCEPTED) == {ACCEPTED}
