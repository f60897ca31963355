"""The guard and legacy iptables on a real kernel: replaced without touching others, healed, handed over, given back."""

import fcntl
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meshagent.agent.capture import iptables, nft, verify
from meshagent.agent.capture.values import Intent
from meshagent.guard import processes
from meshagent.guard.client import GuardRefusedError, command
from meshagent.guard.state import Ruleset
from meshagent.lab.waiting import wait_until
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided, declared
from tests.guard.conftest import Guarded

pytestmark = pytest.mark.root

UNIT = Path(__file__).parents[2] / "packaging/systemd/meshagent-guard.service"
SERVICES = (declared("web", 80, 8080),)
INTENT = decided(Posture.PERMISSIVE, "240.240.0.7:6379", "10.1.2.3:3306", "[fd00::77]:3306", services=SERVICES)
RULES = iptables.render(INTENT)
THEIRS = """*filter
:THEIRS - [0:0]
-I INPUT 1 -p tcp -m tcp --dport 7 -m comment --comment "theirs, first" -j THEIRS
[7:9] -A THEIRS -s 10.9.9.9/32 -j DROP
COMMIT
*nat
[3:4] -A OUTPUT -d 10.8.8.8/32 -p tcp -m tcp --dport 8 -j REDIRECT --to-ports 9
COMMIT
"""


def save(guarded: Guarded, version: int = 4, *, counters: bool = False) -> list[str]:
    """iptables-save without what moves by itself."""
    argv = [f"{'iptables' if version == 4 else 'ip6tables'}-legacy-save", *(["-c"] if counters else [])]
    lines = guarded.host.run(argv).stdout.splitlines()
    return [re.sub(r"\[\d+:\d+\]$", "", line) for line in lines if not line.startswith("#")]


def ours(guarded: Guarded, version: int = 4) -> list[str]:
    return [line for line in save(guarded, version) if "MESHAGENT" in line]


def theirs(guarded: Guarded) -> list[str]:
    return [line for line in save(guarded, counters=True) if "MESHAGENT" not in line]


def restore(guarded: Guarded, text: str, *options: str) -> None:
    guarded.host.run(["iptables-legacy-restore", "-w", "5", *options], input=text)


def healed(guarded: Guarded) -> int:
    return int(guarded.client.state()["heals"])


def another(*mesh: str) -> Intent:
    return decided(Posture.PERMISSIVE, *mesh, services=SERVICES)


def test_rules_come_and_go_and_leave_every_other_rule_its_counters_and_its_place(guarded: Guarded) -> None:
    restore(guarded, THEIRS, "--noflush", "--counters")
    guarded.host.run(["ip6tables-legacy", "-w", "5", "-A", "FORWARD", "-j", "DROP"])
    guarded.client.apply(RULES)  # the first use makes the tables raw and mangle; the kernel never takes them back
    guarded.client.remove(anchor=True)
    before, before6 = (save(guarded, version, counters=True) for version in (4, 6))

    guarded.client.apply(RULES)
    assert theirs(guarded) == before, "none of theirs changed"
    once = save(guarded)
    guarded.client.apply(RULES)
    assert save(guarded) == once, "applying twice is the same"
    guarded.client.remove(anchor=False)
    assert [line for line in ours(guarded) if line.startswith("-A")] == [
        line for line in RULES.anchor.splitlines() if "192.0.2.1" in line
    ]
    guarded.client.remove(anchor=True)
    assert (save(guarded, 4, counters=True), save(guarded, 6, counters=True)) == (before, before6)


def test_a_host_that_never_used_legacy_tables_gets_none_from_rules_of_nft(guarded: Guarded) -> None:
    guarded.client.apply(nft.render(INTENT))
    guarded.client.remove(anchor=True)
    assert guarded.host.run(["cat", "/proc/net/ip_tables_names"]).stdout == ""


@pytest.mark.parametrize(
    "harm",
    [
        ["-t", "nat", "-F"],
        ["-t", "filter", "-F", "OUTPUT"],
        ["-t", "nat", "-F", "MESHAGENT_TO_PROXY"],
        ["-t", "nat", "-D", "OUTPUT", "1"],
    ],
)
def test_what_another_program_flushed_is_back_at_once(guarded: Guarded, harm: list[str]) -> None:
    guarded.client.apply(RULES)
    before = save(guarded)
    guarded.host.run(["iptables-legacy", "-w", "5", *harm])

    wait_until(lambda: save(guarded) == before, 20)
    wait_until(lambda: healed(guarded) == 1, 20)


def first(guarded: Guarded, table: str, chain: str) -> str:
    """The first rule of one of the kernel's chains."""
    listed = guarded.host.run(["iptables-legacy", "-w", "5", "-t", table, "-S", chain]).stdout.splitlines()
    return next((line for line in listed if line.startswith("-A")), "")


def test_rules_that_others_put_before_ours_stay_and_ours_goes_to_the_front_again(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    for table, chain in (("filter", "INPUT"), ("nat", "OUTPUT"), ("mangle", "PREROUTING")):
        guarded.host.run(
            ["iptables-legacy", "-w", "5", "-t", table, "-I", chain, "-d", "10.5.5.5", "-c", "7", "9", "-j", "ACCEPT"]
        )
        wait_until(lambda: "-j MESHAGENT_" in first(guarded, table, chain), 20)  # noqa: B023
    wait_until(lambda: healed(guarded) == 3, 20)
    assert sum("[7:9] -A " in line for line in save(guarded, counters=True)) == 3, "theirs keep their counters"
    assert not guarded.client.state()["contested"]
    assert guarded.client.state()["last_heal"]["what"] == "rules put before ours"


def test_the_program_that_held_the_lock_of_iptables_is_named(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    argv = ["iptables-legacy-restore", "--noflush", "-w", "5"]
    culprit = subprocess.Popen(guarded.host.enter(argv), stdin=subprocess.PIPE, text=True)
    assert culprit.stdin
    culprit.stdin.write("*nat\n-F MESHAGENT_TO_PROXY\n")
    culprit.stdin.flush()
    inode = guarded.host.path("/run/xtables.lock").stat().st_ino
    wait_until(lambda: f":{inode} 0 EOF" in Path("/proc/locks").read_text(), 20, "the lock")
    for _ in range(2):
        guarded.client.state()  # one round of the guard after the lock was taken
    culprit.communicate("COMMIT\n")
    wait_until(lambda: healed(guarded), 20)
    heal = guarded.client.state()["last_heal"]
    assert heal["name"].startswith("iptables-legacy by ") and heal["pid"] > 1


def test_whoever_insists_on_being_first_gets_no_fight_and_is_told_about(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    insist = ["iptables-legacy", "-w", "5", "-I", "INPUT", "-d", "10.5.5.5", "-j", "ACCEPT"]
    while not guarded.client.state()["contested"]:
        seen = healed(guarded)
        guarded.host.run(insist)
        wait_until(lambda: healed(guarded) > seen, 20)  # noqa: B023
        assert seen < 8, "after the third time in a row it waits"
    assert healed(guarded) > 3
    guarded.host.run(insist)
    guarded.host.run(["iptables-legacy", "-w", "5", "-t", "nat", "-F", "MESHAGENT_TO_PROXY"])
    wait_until(lambda: any(line.startswith("-A MESHAGENT_TO_PROXY ") for line in save(guarded)), 20)


def test_a_whole_rule_set_that_another_program_loads_stays_and_ours_is_back_at_once(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    restore(
        guarded,
        "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n",
    )

    wait_until(lambda: "MESHAGENT_INPUT" in " ".join(save(guarded)), 20)
    now = save(guarded)
    assert ":INPUT DROP " in now and "-A INPUT -i lo -j ACCEPT" in now


def one_replaced(saved: list[str]) -> str:
    """What makes a rule of ours another of the same size."""
    rule = next(line for line in saved if line.startswith("-A MESHAGENT_TO_PROXY "))
    other = rule.replace("--to-ports 15001", "--to-ports 15002").removeprefix("-A MESHAGENT_TO_PROXY ")
    return f"*nat\n-R MESHAGENT_TO_PROXY 1 {other}\nCOMMIT\n"


def test_a_rule_replaced_by_another_of_the_same_size_is_noticed_too(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    before = save(guarded)
    restore(guarded, one_replaced(before), "--noflush")

    wait_until(lambda: save(guarded) == before, 8)


_SETTLING = """
import subprocess, sys
from meshagent.guard.installing import LegacyChange
from meshagent.guard.legacy_side import LegacySide
from meshagent.guard.state import State
from tests.guard.test_legacy import RULES

side, state = LegacySide(), State(installed=RULES)
side.run(LegacyChange((RULES.table, RULES.anchor)), State())
subprocess.run(["iptables-legacy-restore", "-w", "5", "--noflush"], input=sys.stdin.read(), text=True, check=True)
side.settle(state, print)
"""


def test_what_changed_before_the_guard_looked_for_the_first_time_is_noticed_too(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    before = save(guarded)
    guarded.program.stop()
    told = guarded.host.run([sys.executable, "-c", _SETTLING], input=one_replaced(before)).stdout.splitlines()
    assert told == ["rules changed"]
    assert save(guarded) == before
    assert guarded.host.run([sys.executable, "-c", _SETTLING], input="").stdout == "", "nothing changed, nothing told"


def test_rules_of_others_are_no_reason_to_act(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    restore(guarded, THEIRS.replace("-I INPUT 1", "-A INPUT"), "--noflush", "--counters")
    before = save(guarded)
    guarded.host.run(["iptables-legacy", "-w", "5", "-t", "raw", "-F", "MESHAGENT_ZONES"])

    wait_until(lambda: save(guarded) == before, 20)
    wait_until(lambda: healed(guarded), 5)
    assert healed(guarded) == 1, "for the harm that came later, not for theirs"
    assert "[7:9] -A THEIRS -s 10.9.9.9/32 -j DROP" in save(guarded, counters=True)


def test_a_gate_opens_and_closes_and_stays_open_over_a_replacement_and_healing(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    before = save(guarded)
    guarded.client.bypass("proxy", "test")
    assert "-j MESHAGENT_AROUND_PROXY" in _gate(guarded)

    guarded.client.apply(iptables.render(another("10.1.2.3:3307")))
    assert "-j MESHAGENT_AROUND_PROXY" in _gate(guarded)
    guarded.host.run(["iptables-legacy", "-w", "5", "-t", "nat", "-F", "MESHAGENT_CLAIMED_GATE"])
    wait_until(lambda: "-j MESHAGENT_AROUND_PROXY" in _gate(guarded), 5)

    guarded.client.apply(RULES)
    guarded.client.recapture("proxy")
    assert save(guarded) == before


def _gate(guarded: Guarded) -> str:
    return next((line for line in save(guarded) if line.startswith("-A MESHAGENT_CLAIMED_GATE ")), "")


def test_the_gate_opens_when_the_watched_process_dies(guarded: Guarded) -> None:
    program = guarded.host.popen(["sleep", "60"])
    guarded.client.apply(RULES)
    ticks = processes.start_time(program.pid)
    assert ticks is not None
    guarded.client.watch("proxy", program.pid, ticks, opens=True)
    program.kill()
    wait_until(lambda: "-j MESHAGENT_AROUND_PROXY" in _gate(guarded), 5)


def test_counters_of_rules_that_stay_go_on_over_a_replacement(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    guarded.host.run(["ip", "route", "add", "240.240.0.0/16", "dev", "lo"])
    with pytest.raises(ConnectionRefusedError):
        guarded.host.connect("240.240.0.7", 5)
    guarded.client.apply(iptables.render(another("10.1.2.3:3307")))

    counts = {count.reason: count.packets for count in verify.counts(guarded.client.listing())}
    assert counts["refused at once instead of a timeout"] == 1


def test_the_capabilities_that_the_guards_unit_leaves_it_are_enough(guarded: Guarded) -> None:
    (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.M)
    bounds = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in line.split())])
    guarded.client.quit()
    guarded.program.wait()
    argv = ["setpriv", f"--bounding-set={bounds}", "--no-new-privs", "--", *command(guarded.host.root)]
    guarded.program = guarded.host.popen(argv, log="guard")
    wait_until(guarded.client.state, what="the guard to answer")
    guarded.client.apply(RULES)
    guarded.host.run(["iptables-legacy", "-w", "5", "-t", "nat", "-F"])
    wait_until(lambda: healed(guarded), 20)
    guarded.client.remove(anchor=True)
    assert ours(guarded) == []


def test_a_killed_guard_leaves_its_rules_and_the_next_one_takes_them_over(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    before = save(guarded)
    guarded.program.kill()
    assert save(guarded) == before

    guarded.restart()
    assert guarded.client.listing() is not None, "what is there is told, whoever made it"
    assert guarded.client.apply(RULES) is False, "legacy tables have no owner"
    assert save(guarded) == before
    guarded.program.kill()
    guarded.restart()
    guarded.client.remove(anchor=True)
    assert ours(guarded) == []


def test_ending_the_guard_takes_the_rules_away_and_leaves_the_anchor(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    guarded.client.quit()
    guarded.program.wait()
    assert {line.split()[1] for line in ours(guarded) if line.startswith("-A")} == {"MESHAGENT_ANCHOR"}


def test_the_backend_changes_without_a_moment_without_rules(guarded: Guarded) -> None:
    guarded.client.apply(nft.render(INTENT))
    guarded.client.apply(RULES)
    assert ours(guarded) and "meshagent" not in guarded.nft("list", "tables")
    guarded.client.apply(nft.render(INTENT))
    assert ours(guarded) == [] and ours(guarded, 6) == []
    assert "table inet meshagent\n" in guarded.nft("list", "tables")
    guarded.client.remove(anchor=True)
    assert "meshagent" not in guarded.nft("list", "tables")


def test_an_unconfirmed_change_of_the_backend_is_rolled_back(guarded: Guarded) -> None:
    before = nft.render(INTENT)
    guarded.client.apply(before)
    guarded.client.deadman(0.3, {"posture": "test"}, back_to=before)
    guarded.client.apply(RULES)
    wait_until(lambda: guarded.client.state()["rolled_back"], 3)
    assert ours(guarded) == [] and "table inet meshagent\n" in guarded.nft("list", "tables")


def test_a_roll_back_to_rules_that_the_kernel_refuses_takes_ours_away(guarded: Guarded) -> None:
    broken = RULES.rules.replace("-j MESHAGENT_OUTBOUND", "-j MESHAGENT_MISSING", 2)
    guarded.client.apply(RULES)
    guarded.client.deadman(0.3, {"posture": "test"}, back_to=Ruleset(broken, RULES.anchor, backend="iptables"))
    wait_until(lambda: guarded.client.state()["rolled_back"], 5)
    assert not guarded.client.state()["installed"]
    assert [line for line in ours(guarded) if "REDIRECT" in line and "--to-ports 15001" in line] == []


def test_rules_of_an_older_version_are_replaced_whole(guarded: Guarded) -> None:
    old = (
        "*nat\n:MESHAGENT_OLD - [0:0]\n-A OUTPUT -j MESHAGENT_OLD\n-A PREROUTING -p tcp -j MESHAGENT_OLD\n"
        "-A MESHAGENT_OLD -d 10.7.7.7/32 -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n"
    )
    restore(guarded, old, "--noflush")
    guarded.program.kill()
    guarded.restart()
    guarded.client.apply(RULES)
    assert "MESHAGENT_OLD" not in " ".join(save(guarded))
    guarded.client.remove(anchor=True)
    assert ours(guarded) == []


@pytest.mark.parametrize(
    "line",
    [
        "-A INPUT -j DROP",
        "-A OUTPUT -j THEIRS",
        "-F",
        "-X",
        "-P INPUT DROP",
        ":INPUT DROP [0:0]",
        "-A MESHAGENT_NAT -j DNAT --to-destination 10.0.0.1",
        '-A MESHAGENT_NAT -m comment --comment "a\nb" -j RETURN',
        "-A MESHAGENT_NAT --modprobe /tmp/x -j RETURN",
        "-A MESHAGENT_NAT -M /tmp/x -j RETURN",
        "-A MESHAGENT_NAT -j RETURN -j REJECT",
        "*security",
        "#!/bin/sh",
    ],
)
def test_text_that_is_not_about_our_own_chains_is_refused(guarded: Guarded, line: str) -> None:
    text = f"# IPv4\n*nat\n:MESHAGENT_NAT - [0:0]\n{line}\nCOMMIT\n"
    with pytest.raises(GuardRefusedError) as refused:
        guarded.client.apply(Ruleset(text, backend="iptables"))
    assert refused.value.code == "refused-text"
    assert ours(guarded) == []


def test_rules_that_the_kernel_refuses_leave_the_ones_before_and_say_which_line(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    before = (save(guarded), save(guarded, 6))
    broken = RULES.rules.replace("-j MESHAGENT_OUTBOUND", "-j MESHAGENT_MISSING", 2)
    with pytest.raises(GuardRefusedError, match="MESHAGENT_MISSING"):
        guarded.client.apply(Ruleset(broken, RULES.anchor, backend="iptables"))
    assert (save(guarded), save(guarded, 6)) == before
    with pytest.raises(GuardRefusedError, match="MESHAGENT_MISSING"):
        guarded.client.check(Ruleset(broken, RULES.anchor, backend="iptables"))


def test_whoever_holds_the_lock_of_iptables_costs_an_error_and_not_the_guard(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    guarded.client.close()
    with guarded.host.path("/run/xtables.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = time.monotonic()
        with pytest.raises(GuardRefusedError, match="lock"):
            guarded.client.bypass("proxy", "test")
        assert time.monotonic() - started < 20
    guarded.client.bypass("proxy", "test")
    assert "-j MESHAGENT_AROUND_PROXY" in _gate(guarded)
