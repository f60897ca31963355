"""Applying: the whole desired state, the least change, and everything given back."""

import contextlib
from dataclasses import replace
from functools import partial

import pytest

from meshagent.agent.capture import nft
from meshagent.agent.capture.apply import Applier, RolledBackError
from meshagent.agent.capture.verify import Sync
from meshagent.guard import readback
from meshagent.guard.client import GuardClient, GuardRefusedError
from meshagent.guard.elements import Change
from meshagent.guard.state import Ruleset
from meshagent.lab.waiting import wait_until
from meshagent.machine import netlink
from meshagent.model.marks import CLIENT_SOURCE_MARK, PUBLISHED_MARK
from meshagent.model.posture import Posture
from tests.agent.capture.stand import Stand, in_thread, mesh, service, start_guard

pytestmark = pytest.mark.root


@pytest.fixture
def backend() -> str:
    """What is said here is about tables and sets of nft; tests/guard/test_legacy.py says it of legacy tables."""
    return "nft"


def looks(stand: Stand) -> list[str]:
    """Everything that could have changed, without counters."""
    commands = (
        ["nft", "--stateless", "list", "ruleset"],
        ["ip", "rule"],
        ["ip", "-6", "rule"],
        ["ip", "route", "show", "table", "all"],
        ["ip", "-6", "route", "show", "table", "all"],
        ["ip", "address"],
    )
    return [stand.host.run(command).stdout for command in commands]


def test_applying_twice_is_applying_once(stand4: Stand) -> None:
    intent = stand4.intent(Posture.PERMISSIVE, mesh("240.240.0.7", 80), services=(service("web", 8080),))
    assert stand4.apply(intent).action == "replaced"
    once = looks(stand4)
    assert stand4.apply(intent).action == "kept"
    assert looks(stand4) == once


def test_a_new_address_changes_one_element_and_keeps_every_counter(stand4: Stand) -> None:
    stand4.proxy()
    first, second = mesh("240.240.0.7", 80), mesh("198.18.0.1", 3306)
    stand4.capture(Posture.PERMISSIVE, first)
    stand4.dial("240.240.0.7", 80)

    assert stand4.apply(stand4.intent(Posture.PERMISSIVE, first, second)).action == "updated"
    assert stand4.dial("198.18.0.1", 3306).startswith("proxy ")
    assert stand4.applier.sync() is Sync.EQUAL
    listing = stand4.guard.listing() or ""
    assert '"counter": {"packets": 2' in listing, "one before the update, one after"


def test_an_agent_that_restarts_with_the_same_intent_touches_nothing(stand4: Stand) -> None:
    intent = stand4.capture(Posture.PERMISSIVE, mesh("240.240.0.7", 80))
    successor = Applier(stand4.guard)
    assert stand4.host.inside(lambda: successor.apply(intent)).action == "kept"
    assert successor.sync() is Sync.EQUAL


def test_an_agent_that_restarts_with_another_intent_replaces(stand4: Stand) -> None:
    stand4.capture(Posture.PERMISSIVE, mesh("240.240.0.7", 80))
    successor, other = Applier(stand4.guard), stand4.intent(Posture.PERMISSIVE, mesh("240.240.0.8", 80))
    assert stand4.host.inside(lambda: successor.apply(other)).action == "replaced"


def test_removing_leaves_the_host_byte_for_byte_as_it_was(stand4: Stand) -> None:
    stand4.host.run(["nft", "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }"])
    stand4.host.run(["nft", "add rule ip nat post oifname eth0 counter packets 3 bytes 4 masquerade"])
    stand4.host.run(["ip", "rule", "add", "fwmark", "7", "lookup", "777"])
    before, counted = looks(stand4), stand4.host.run(["nft", "list", "ruleset"]).stdout
    for posture in (Posture.OUTBOUND, Posture.STRICT):
        stand4.capture(posture, mesh("240.240.0.7", 80), services=(service("web", 8080),), capture_dns=True)

    stand4.remove()
    assert looks(stand4) == before
    assert stand4.host.run(["nft", "list", "ruleset"]).stdout == counted, "counters of others go on"


def test_removing_on_a_host_that_was_never_captured_is_harmless(stand4: Stand) -> None:
    before = looks(stand4)
    stand4.remove()
    assert looks(stand4) == before


def test_observe_after_capture_leaves_only_what_open_connections_need(stand4: Stand) -> None:
    stand4.capture(Posture.PERMISSIVE, mesh("240.240.0.7", 80), services=(service("web", 8080),))
    stand4.capture(Posture.OBSERVE, draining=True)
    table = stand4.host.run(["nft", "list", "table", "inet", "meshagent"]).stdout
    assert "redirect to" not in table and "callers4" not in table
    assert "ct mark" in table


def test_a_lost_table_and_a_changed_one_are_noticed(stand4: Stand) -> None:
    intent = stand4.capture(Posture.STRICT, mesh("240.240.0.7", 80))
    assert stand4.applier.sync() is Sync.EQUAL
    stand4.guard.update({"claimed4": Change(add=bytes((10, 9, 9, 9, 0, 1)))}, nft.render(intent).digest, "other")
    assert stand4.applier.sync() is Sync.EQUAL, "the guard knows of its own changes"
    stand4.guard.remove(anchor=False)
    assert stand4.applier.sync() is Sync.EQUAL, "nothing is what should be there now"


def test_after_a_roll_back_nothing_is_captured_until_it_is_acknowledged(stand4: Stand) -> None:
    intent = stand4.intent(Posture.PERMISSIVE, mesh("240.240.0.7", 80))
    stand4.guard.deadman(2.0, {}, Ruleset(anchor=nft.ANCHOR))
    stand4.apply(intent)
    wait_until(lambda: stand4.guard.state()["rolled_back"], 20)

    with pytest.raises(RolledBackError, match="not confirmed"):
        stand4.apply(intent)
    stand4.guard.acknowledge()
    assert stand4.apply(intent).action == "replaced"


def test_the_kernel_judges_before_anything_changes(stand4: Stand) -> None:
    before = looks(stand4)
    stand4.applier.check(stand4.intent(Posture.STRICT, mesh("240.240.0.7", 80), services=(service("web", 8080),)))
    assert looks(stand4) == before


def test_an_owner_of_the_table_elsewhere_is_an_error_that_says_so(stand4: Stand) -> None:
    """A second root in the same network namespace: both want the one table."""
    stand4.capture(Posture.PERMISSIVE, mesh("240.240.0.7", 80))
    elsewhere = replace(stand4.host, root=stand4.host.root.parent / "elsewhere")
    program, client = start_guard(elsewhere)
    with pytest.raises(GuardRefusedError) as refused:
        client.apply(nft.render(stand4.intent(Posture.PERMISSIVE)))
    assert "second guard" in refused.value.hint
    client.close()
    program.stop()
    assert stand4.applier.sync() is Sync.EQUAL, "and its end takes nothing of ours along"


def test_five_thousand_addresses_are_one_transaction_and_one_more_is_cheap(stand4: Stand) -> None:
    many = [mesh(f"198.18.{number // 200}.{number % 200 + 1}", 3306) for number in range(5000)]
    stand4.capture(Posture.OUTBOUND, *many)
    assert stand4.apply(stand4.intent(Posture.OUTBOUND, *many, mesh("240.240.0.1", 1))).action == "updated"
    listed = {
        body["name"]: body.get("elem", ())
        for kind, body in readback.objects(stand4.guard.listing() or "")
        if kind == "set"
    }
    assert (len(listed["claimed4"]), len(listed["virtual4"])) == (5000, 1)


def test_two_agents_and_a_program_that_flushes_race_and_nothing_is_lost(stand4: Stand) -> None:
    """Whoever comes last wins, whole; nobody's half is left."""
    stand4.host.run(["nft", "add table ip theirs"])
    intents = [stand4.intent(Posture.PERMISSIVE, mesh(f"240.240.0.{n}", 80)) for n in (1, 2)]
    others = [Applier(stand4.guard), Applier(stand4.guard)]

    def apply_often(number: int) -> None:
        for _ in range(25):
            stand4.host.inside(lambda: others[number].apply(intents[number]))

    racing = [in_thread(partial(apply_often, number)) for number in (0, 1)]
    while any(thread.is_alive() for thread in racing):
        stand4.host.run(["nft", "flush", "ruleset"])
    for thread in racing:
        thread.join()

    stand4.apply(intents[0])
    assert stand4.applier.sync() is Sync.EQUAL
    assert "240.240.0.1 . 80" in stand4.ruleset() and "240.240.0.2 . 80" not in stand4.ruleset()
    wait_until(lambda: "meshagent_anchor" in stand4.ruleset(), 1)


class Watching(GuardClient):
    """Remembers which ip rules of ours were there when it was asked to change packets."""

    seen: tuple[netlink.Rule, ...] = ()

    def apply(self, ruleset: Ruleset) -> bool:
        self.seen = netlink.our_rules()
        return super().apply(ruleset)


def test_where_marks_lead_is_known_before_packets_carry_them(stand4: Stand) -> None:
    """On an upgrade connections are open, and their next answers come in a moment after the change."""
    with contextlib.closing(Watching(stand4.host.root / "run/meshagent/guard.sock")) as guard:
        applier, intent = Applier(guard), stand4.intent(Posture.PERMISSIVE)
        stand4.host.inside(lambda: applier.apply(intent))
        assert {rule.mark for rule in guard.seen} == {CLIENT_SOURCE_MARK, PUBLISHED_MARK}
        assert set(guard.seen) == set(stand4.host.inside(netlink.our_rules))
