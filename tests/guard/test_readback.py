"""Listings of the kernel, made comparable and countable."""

import json

from meshagent.guard import readback


def listing(*objects: dict[str, object]) -> str:
    return json.dumps({"nftables": [{"metainfo": {"version": "1.0.6"}}, *objects]})


def rule(packets: int, handle: int, port: int = 80) -> dict[str, object]:
    return {"rule": {"chain": "c", "handle": handle, "expr": [{"counter": {"packets": packets}}, {"port": port}]}}


def callers(**changes: object) -> dict[str, object]:
    element = {"val": {"concat": ["10.0.0.1", 80]}, "expires": 59, "counter": {"packets": 3, "bytes": 180}}
    return {"set": {"name": "callers4", "timeout": 60, "elem": [{"elem": element | changes}]}}


def test_counters_handles_and_callers_make_no_difference() -> None:
    assert readback.digest(listing(rule(1, 5), callers())) == readback.digest(listing(rule(9, 6), callers(expires=1)))


def test_another_rule_or_element_makes_one() -> None:
    assert readback.digest(listing(rule(1, 5))) != readback.digest(listing(rule(1, 5, port=81)))
    static = [{"set": {"name": "claimed4", "elem": [{"concat": ["10.0.0.1", port]}]}} for port in (80, 81)]
    assert readback.digest(listing(static[0])) != readback.digest(listing(static[1]))


def test_counted_elements_are_read_with_the_time_they_have_left() -> None:
    found = readback.dynamic_elements(listing(callers(), rule(1, 1)), ("callers4",))
    assert found == {"callers4": [("10.0.0.1 . 80", 3, 180, 59)]}


def test_sets_that_were_not_asked_for_are_left_out() -> None:
    assert readback.dynamic_elements(listing(callers()), ("refused4",)) == {}


def test_the_order_of_elements_and_the_name_of_the_table_make_no_difference() -> None:
    def of(table: str, *ports: int) -> str:
        members = [{"concat": ["10.0.0.1", port]} for port in ports]
        return listing({"table": {"name": table}}, {"set": {"name": "claimed4", "table": table, "elem": members}})

    assert readback.digest(of("one", 80, 81)) == readback.digest(of("other", 81, 80))
    assert readback.digest(of("one", 80)) != readback.digest(of("one", 81))


def test_the_order_in_which_sets_and_chains_were_made_means_nothing_that_of_rules_does() -> None:
    chains: list[dict[str, object]] = [{"chain": {"name": name}} for name in ("a", "b")]
    rules: list[dict[str, object]] = [{"rule": {"chain": "a", "expr": [{"port": port}]}} for port in (80, 81)]
    assert readback.digest(listing(*chains, *rules)) == readback.digest(listing(*reversed(chains), *rules))
    assert readback.digest(listing(*chains, *rules)) != readback.digest(listing(*chains, *reversed(rules)))
