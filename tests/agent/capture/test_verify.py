"""What the kernel holds, as people want to know it."""

import json

import pytest

from meshagent.agent.capture import verify
from meshagent.agent.capture.nft import render
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided, declared, pair
from tests.agent.capture.stand import Stand


def listing(*objects: dict[str, object]) -> str:
    return json.dumps({"nftables": list(objects)})


def rule(chain: str, packets: int, comment: str) -> dict[str, object]:
    return {"rule": {"chain": chain, "comment": comment, "expr": [{"counter": {"packets": packets, "bytes": 1}}]}}


def caller_set(name: str, *elements: tuple[object, int, int, int]) -> dict[str, object]:
    items = [
        {"elem": {"val": {"concat": [ip, port]}, "expires": left, "counter": {"packets": packets, "bytes": 9}}}
        for ip, port, packets, left in elements
    ]
    return {"set": {"name": name, "timeout": 86400, "elem": items}}


def test_callers_come_busiest_first_with_what_became_of_them_and_how_long_ago() -> None:
    text = listing(
        caller_set("callers4", ("10.0.0.1", 80, 2, 86400), ("10.0.0.2", 80, 7, 86390)),
        caller_set("refused6", ("fd00::1", 443, 3, 80000)),
    )
    found = verify.callers(text)
    assert [(str(caller.address), caller.count, caller.refused, caller.idle) for caller in found] == [
        ("10.0.0.2", 7, False, 10),
        ("fd00::1", 3, True, 6400),
        ("10.0.0.1", 2, False, 0),
    ]


def test_rules_are_counted_with_their_reason() -> None:
    text = listing(rule("to_proxy", 5, "to the proxy"), rule("around_proxy", 2, "around"))
    assert [(count.chain, count.packets) for count in verify.counts(text)] == [("to_proxy", 5), ("around_proxy", 2)]
    assert verify.around_proxy(text) == 2


def test_what_differs_is_named_by_chain_and_reason() -> None:
    table = render(decided(Posture.STRICT, "240.240.0.7:80", services=(declared("web", 8080),))).table
    rules = list(verify._reasons(table))
    same = listing(*(rule(chain, 0, reason) for chain, reason in rules))
    assert len(rules) == table.count(' comment "') > 10
    assert verify.differences(table, same) == ()
    (lost_chain, lost_reason), *rest = rules
    other = listing(*(rule(chain, 0, reason) for chain, reason in rest), rule("output", 0, ""), rule("x", 0, "mine"))
    assert verify.differences(table, other) == (
        f"missing in chain {lost_chain}: {lost_reason}",
        "not ours in chain output: a rule without a comment",
        "not ours in chain x: mine",
    )
    assert verify.differences(table, None) == ("the table is not there",)
    assert verify.differences("", None) == ()


@pytest.mark.root
@pytest.mark.parametrize("backend", ["nft"])
def test_what_the_kernel_prints_of_our_own_text_differs_in_nothing(stand4: Stand) -> None:
    stand4.capture(Posture.STRICT, pair("240.240.0.7:80"), services=(declared("web", 8080),), capture_dns=True)
    assert stand4.applied is not None
    assert verify.differences(render(stand4.applied).table, stand4.guard.listing()) == ()


def test_no_table_means_nothing_to_tell() -> None:
    assert (verify.callers(None), verify.counts(None), verify.around_proxy(None)) == ((), (), 0)
