"""What the guard does on every request and event, as plans."""

from dataclasses import replace

import pytest

from meshagent.guard import decide
from meshagent.guard.decide import Facts, Memory
from meshagent.guard.elements import Change
from meshagent.guard.state import Gate, RolledBack, Ruleset, State, Trial, Watch
from meshagent.guard.wire import RequestError

TABLE = "table inet meshagent {\n\tchain a {\n\t}\n}\n"
ANCHOR = "table inet meshagent_anchor {\n}\n"
OPEN, CLOSE = "flush map inet meshagent g\n", "add element inet meshagent g { tcp : goto p }\n"
REFUSE, ADMIT = (f"{verb} element inet meshagent h {{ tcp : goto n }}\n" for verb in ("add", "delete"))
RULES = Ruleset(TABLE, ANCHOR, owner=True, digest="d1", gates={"proxy": Gate(OPEN, CLOSE)})
KERNEL = Facts(owner_supported=True, anchor_present=False)
ANCHORED = replace(KERNEL, anchor_present=True)


def installed(rules: Ruleset = RULES) -> State:
    return decide.apply(State(), rules, KERNEL).state


def test_the_first_apply_makes_the_anchor_and_replaces_the_table_in_one_batch() -> None:
    plan = decide.apply(State(), RULES, KERNEL)
    assert plan.batch == (
        ANCHOR
        + "table inet meshagent\ndelete table inet meshagent\n"
        + "table inet meshagent {\n\tflags owner;\n\tchain a {\n\t}\n}\n"
    )
    assert plan.state.owned and plan.state.installed == RULES


def test_a_replacement_repeats_the_owner_flag_and_leaves_the_anchor_alone() -> None:
    batch = decide.apply(installed(), RULES, ANCHORED).batch
    assert batch.startswith(
        "table inet meshagent { flags owner; }\ndelete table inet meshagent\ntable inet meshagent {"
    )


def test_a_kernel_without_owner_flags_and_a_closed_policy_get_a_plain_table() -> None:
    for rules, kernel in ((RULES, replace(KERNEL, owner_supported=False)), (replace(RULES, owner=False), KERNEL)):
        plan = decide.apply(State(), rules, kernel)
        assert "owner" not in plan.batch and not plan.state.owned


def test_from_owned_to_unowned_and_back_each_batch_fits_what_is_there() -> None:
    closed = decide.apply(installed(), replace(RULES, owner=False), ANCHORED)
    assert closed.batch.startswith("table inet meshagent { flags owner; }\n") and not closed.state.owned
    again = decide.apply(closed.state, RULES, ANCHORED)
    assert again.batch.startswith("table inet meshagent\n") and again.state.owned


def test_no_rules_wanted_means_the_table_goes_and_the_anchor_stays() -> None:
    plan = decide.apply(installed(), Ruleset(), ANCHORED)
    assert plan.batch == "table inet meshagent { flags owner; }\ndelete table inet meshagent\n"


def test_an_open_gate_stays_open_over_a_replacement() -> None:
    opened = decide.bypass(installed(), "proxy", "test", 1.0).state
    assert decide.apply(opened, RULES, ANCHORED).batch.endswith(OPEN)


def test_counted_elements_are_carried_over() -> None:
    carried = decide.carried_lines({"callers4": [("10.0.0.1 . 80", 3, 180, 60)], "callers6": []})
    assert carried == "add element inet meshagent callers4 { 10.0.0.1 . 80 counter packets 3 bytes 180 expires 60s }\n"
    assert carried in decide.apply(installed(), RULES, replace(ANCHORED, carried=carried)).batch


# --- gates


def test_a_dead_proxy_opens_its_gate_at_once_with_policy_open() -> None:
    state = installed().with_watch("proxy", Watch(42, 1, opens=True))
    plan = decide.process_died(state, "proxy", state.watches["proxy"], 9.0)
    assert plan.batch == OPEN
    assert plan.state.bypasses["proxy"].since_at == 9.0 and "42" in plan.state.bypasses["proxy"].reason
    assert not plan.state.watches


def test_a_dead_proxy_changes_nothing_with_policy_closed() -> None:
    state = installed().with_watch("proxy", Watch(42, 1, opens=False))
    plan = decide.process_died(state, "proxy", state.watches["proxy"], 9.0)
    assert plan.batch == "" and not plan.state.bypasses


def test_what_a_dead_proxy_would_get_is_refused_under_either_policy() -> None:
    """Nobody may listen in its place; what can go around it goes."""
    rules = replace(RULES, gates={**RULES.gates, "hung": Gate(REFUSE, ADMIT)})
    for opens, batch in ((True, REFUSE + OPEN), (False, REFUSE)):
        state = installed(rules).with_watch("proxy", Watch(42, 1, opens=opens))
        plan = decide.process_died(state, "proxy", state.watches["proxy"], 9.0)
        assert plan.batch == batch and plan.state.bypasses["hung"].reason == "process 42 ended"
        assert decide.well(plan.state, "proxy").state.bypasses == {}
    resolver = installed(rules).with_watch("resolver", Watch(43, 1, opens=True))
    assert "hung" not in decide.process_died(resolver, "resolver", resolver.watches["resolver"], 9.0).state.bypasses


def test_opening_twice_keeps_the_first_time_and_closing_twice_is_harmless() -> None:
    once = decide.bypass(installed(), "proxy", "first", 1.0).state
    twice = decide.bypass(once, "proxy", "second", 2.0)
    assert (twice.batch, twice.state.bypasses["proxy"].since_at) == ("", 1.0)
    closed = decide.recapture(twice.state, "proxy")
    assert closed.batch == CLOSE and not closed.state.bypasses
    assert decide.recapture(closed.state, "proxy").batch == ""


def test_a_gate_without_rules_opens_in_memory_only() -> None:
    plan = decide.bypass(State(), "proxy", "early", 1.0)
    assert plan.batch == "" and "proxy" in plan.state.bypasses


def test_without_a_gate_nothing_opens_whoever_asks_and_an_open_one_is_shut_by_such_rules() -> None:
    closed = replace(RULES, owner=False, gates={})
    state = installed(closed).with_watch("proxy", Watch(42, 1, opens=True))
    assert decide.process_died(state, "proxy", state.watches["proxy"], 9.0).state.bypasses == {}
    assert decide.bypass(state, "proxy", "asked", 1.0).state.bypasses == {}

    opened = decide.bypass(installed(), "proxy", "test", 1.0).state
    assert decide.apply(opened, closed, ANCHORED).state.bypasses == {}


# --- the dead-man

TRIAL = Trial(100.0, 1100.0, back_to=Ruleset(anchor=ANCHOR), note={"posture": "strict"})


def test_a_trial_is_remembered_before_anything_else_and_forgotten_when_confirmed() -> None:
    armed = decide.arm(State(), TRIAL)
    assert armed.memory is Memory.WRITE and armed.batch == ""
    confirmed = decide.confirm(armed.state)
    assert confirmed.memory is Memory.FORGET and confirmed.state.trial is None
    assert decide.confirm(confirmed.state).memory is Memory.KEEP


def test_a_second_change_within_a_trial_keeps_the_first_way_back() -> None:
    armed = decide.arm(State(), TRIAL).state
    again = decide.arm(armed, replace(TRIAL, deadline=200.0, back_to=RULES)).state
    assert again.trial and again.trial.deadline == 200.0 and again.trial.back_to == TRIAL.back_to


def test_an_unconfirmed_change_is_undone_and_remembered() -> None:
    state = decide.arm(installed(), TRIAL).state
    plan = decide.roll_back(state, "not confirmed in time", 5.0, ANCHORED)
    assert "delete table inet meshagent" in plan.batch and "chain" not in plan.batch
    assert plan.memory is Memory.WRITE
    assert plan.state.trial is None
    assert plan.state.rolled_back == RolledBack(5.0, "not confirmed in time", {"posture": "strict"})


def test_after_a_roll_back_nothing_new_is_installed_until_somebody_takes_note() -> None:
    undone = decide.roll_back(decide.arm(installed(), TRIAL).state, "why", 5.0, ANCHORED).state
    with pytest.raises(RequestError) as refused:
        decide.apply(undone, RULES, ANCHORED)
    assert refused.value.code == "rolled-back"
    assert decide.apply(undone, Ruleset(), ANCHORED).batch, "taking rules out is always allowed"
    noted = decide.acknowledge(undone)
    assert noted.memory is Memory.FORGET
    assert decide.apply(noted.state, RULES, ANCHORED).batch


@pytest.mark.parametrize(("boot", "reason"), [("b1", ""), ("b2", "the host restarted before it was confirmed")])
def test_a_new_guard_takes_over_the_trial_of_the_one_before(boot: str, reason: str) -> None:
    """Also one whose time is over: what it has to undo may still be in the kernel."""
    plan = decide.after_start(State(trial=TRIAL), boot, "b1", 9.0)
    assert (plan.state.trial is None) is bool(reason)
    assert (plan.state.rolled_back.reason if plan.state.rolled_back else "") == reason


# --- updates, removal, healing


def test_an_update_starts_from_the_rules_it_names_and_remembers_the_whole() -> None:
    key, other = bytes((10, 0, 0, 1, 0, 80)), bytes((10, 0, 0, 2, 0, 80))
    state = installed(replace(RULES, sets={"claimed4": key}))
    change = {"claimed4": Change(add=other, delete=key)}
    plan = decide.update(state, change, "d1", "d2")
    assert (plan.batch, plan.changes) == ("", change)
    assert plan.state.installed == replace(RULES, sets={"claimed4": other}, digest="d2")
    for before, expects in ((State(), "d1"), (state, "d0")):
        with pytest.raises(RequestError, match="not those"):
            decide.update(before, {"claimed4": Change(add=other)}, expects, "d2")


def test_the_copy_to_compare_with_hooks_nowhere_and_has_the_open_gates() -> None:
    opened = decide.bypass(installed(), "proxy", "test", 1.0).state
    assert decide.reference_batch(opened) == (
        "table inet meshagent_reference {\n\tflags dormant;\n\tchain a {\n\t}\n}\n"
        "flush map inet meshagent_reference g\n"
    )


def test_the_anchor_is_removed_only_when_asked_and_last() -> None:
    assert "anchor" not in decide.remove(installed(), anchor=False).batch
    lines = decide.remove(installed(), anchor=True).batch.splitlines()
    assert lines[-1] == "delete table inet meshagent_anchor"
    assert decide.remove(installed(), anchor=True).state.installed is None


def test_healing_puts_the_rules_back_and_says_who_it_was() -> None:
    state = installed(replace(RULES, owner=False))
    plan = decide.reinstall(state, ANCHORED)
    assert TABLE in plan.batch and plan.state.heals == 0
    after = decide.healed(plan.state, (77, "nft"), "table removed", 3.0)
    assert (after.heals, after.last_heal and after.last_heal.name) == (1, "nft")


def test_a_lost_anchor_is_made_again_without_touching_the_rules() -> None:
    assert decide.reinstall_anchor(installed()).batch == ANCHOR
