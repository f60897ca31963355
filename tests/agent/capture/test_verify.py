"""What the kernel holds, as people want to know it."""

import json

from meshagent.agent.capture import verify


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


def test_no_table_means_nothing_to_tell() -> None:
    assert (verify.callers(None), verify.counts(None), verify.around_proxy(None)) == ((), (), 0)
