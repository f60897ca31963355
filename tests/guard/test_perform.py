"""The guard against a real kernel: ownership, gates, the dead-man, healing."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meshagent.agent.capture import nft
from meshagent.guard import processes
from meshagent.guard.client import GuardClient, GuardRefusedError
from meshagent.guard.elements import Change
from meshagent.guard.state import Ruleset
from meshagent.lab.program import Program
from meshagent.lab.waiting import wait_until
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided, declared
from tests.guard.callers import answering
from tests.guard.conftest import CLOSED, RULES, TABLE, UNOWNED, Guarded

pytestmark = pytest.mark.root

KEY = bytes((10, 99, 0, 2, 0, 81))


def sleeper(guarded: Guarded) -> tuple[Program, int]:
    program = guarded.host.popen(["sleep", "60"])
    started = processes.start_time(program.pid)
    assert started is not None
    return program, started


def tables(guarded: Guarded) -> list[str]:
    return guarded.nft("list", "tables").split("\n")[:-1]


# --- ownership


def test_nobody_else_can_flush_or_delete_an_owned_table(guarded: Guarded) -> None:
    assert guarded.client.apply(RULES) is True
    before = guarded.nft("list", "table", "inet", "meshagent")

    guarded.nft("flush", "ruleset")
    assert "not permitted" in guarded.nft("delete", "table", "inet", "meshagent", check=False)
    assert guarded.nft("list", "table", "inet", "meshagent") == before


def test_the_anchor_is_put_back_within_a_second_and_the_culprit_is_named(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    guarded.nft("flush", "ruleset")

    wait_until(lambda: "table inet meshagent_anchor" in tables(guarded), 1)
    heal = guarded.client.state()["last_heal"]
    assert (heal["name"], heal["what"]) == ("nft", "anchor removed") and heal["pid"] > 0


@pytest.mark.parametrize(
    "change",
    [["flush", "ruleset"], ["delete", "table", "inet", "meshagent"], ["flush", "chain", "inet", "meshagent", "out"]],
)
def test_an_unowned_table_is_put_back_within_a_second(owning: Guarded, change: list[str]) -> None:
    assert owning.client.apply(UNOWNED) is False
    before = owning.nft("--stateless", "list", "table", "inet", "meshagent")
    owning.nft(*change)

    wait_until(lambda: owning.nft("--stateless", "list", "table", "inet", "meshagent", check=False) == before, 1)
    assert owning.client.state()["heals"] >= 1


def test_both_tables_are_put_back_as_they_were_when_both_are_flushed(owning: Guarded) -> None:
    owning.client.apply(UNOWNED)

    def ruleset() -> list[str]:
        return [owning.nft("-s", "list", "table", "inet", name) for name in ("meshagent", "meshagent_anchor")]

    wanted = ruleset()
    for _ in range(3):
        owning.nft("flush", "ruleset")
        wait_until(lambda: ruleset() == wanted, 20)


def test_other_programs_rules_are_neither_touched_nor_a_reason_to_act(owning: Guarded) -> None:
    owning.client.apply(UNOWNED)
    owning.nft("add table ip theirs; add chain ip theirs c; add rule ip theirs c counter packets 7 bytes 9 accept")
    owning.client.apply(UNOWNED)
    owning.client.state()

    assert "counter packets 7 bytes 9" in owning.nft("list", "table", "ip", "theirs")
    assert owning.client.state()["heals"] == 0


def test_apply_twice_is_the_same_and_remove_leaves_what_was_there_before(guarded: Guarded) -> None:
    guarded.nft(
        "add table ip theirs; add chain ip theirs c { type nat hook output priority 0; }; add rule ip theirs c accept"
    )
    before = guarded.nft("list", "ruleset")

    guarded.client.apply(RULES)
    once = guarded.nft("list", "ruleset")
    guarded.client.apply(RULES)
    assert guarded.nft("list", "ruleset") == once
    guarded.client.remove(anchor=True)
    assert guarded.nft("list", "ruleset") == before
    guarded.client.remove(anchor=True)
    assert guarded.nft("list", "ruleset") == before


def test_a_check_changes_nothing_and_tells_what_the_kernel_says(guarded: Guarded) -> None:
    guarded.client.check(RULES)
    assert guarded.nft("list", "ruleset") == ""
    with pytest.raises(GuardRefusedError, match="No such file"):
        guarded.client.check(Ruleset(TABLE.replace("goto captured", "goto absent"), digest="bad"))


def test_rules_the_kernel_refuses_leave_the_old_ones_in_place(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    before = guarded.nft("list", "ruleset")
    with pytest.raises(GuardRefusedError):
        guarded.client.apply(Ruleset(TABLE.replace("goto captured", "goto absent"), owner=True, digest="bad"))
    assert guarded.nft("list", "ruleset") == before
    assert guarded.client.state()["digest"] == "rules"


def test_text_about_other_tables_never_reaches_the_kernel(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    for hostile in (TABLE + "flush ruleset\n", TABLE.replace("inet meshagent", "inet other")):
        with pytest.raises(GuardRefusedError) as refused:
            guarded.client.apply(Ruleset(hostile))
        assert refused.value.code == "refused-text"


def test_an_update_changes_elements_and_nothing_else(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    guarded.client.update({"claimed4": Change(add=KEY)}, "rules", "more")
    assert "10.99.0.2 . 81" in guarded.nft("list", "set", "inet", "meshagent", "claimed4")
    assert guarded.client.state()["digest"] == "more"

    guarded.client.update({"claimed4": Change(delete=KEY)}, "more", "rules")
    assert "10.99.0.2 . 81" not in guarded.nft("list", "set", "inet", "meshagent", "claimed4")


def test_an_update_of_other_rules_than_those_installed_changes_nothing(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    with pytest.raises(GuardRefusedError) as refused:
        guarded.client.update({"claimed4": Change(add=KEY)}, "others", "more")
    assert refused.value.code == "other-rules"
    with pytest.raises(GuardRefusedError, match="no set"):
        guarded.client.update({"other4": Change(add=KEY)}, "rules", "more")
    assert guarded.client.state()["digest"] == "rules"


def test_the_kernel_is_compared_with_what_should_be_there(guarded: Guarded) -> None:
    assert guarded.client.verify() == "equal", "nothing, and nothing wanted"
    guarded.client.apply(UNOWNED)
    guarded.client.update({"claimed4": Change(add=KEY)}, "unowned", "more")
    before = guarded.nft("list", "ruleset")
    assert guarded.client.verify() == "equal"
    guarded.client.bypass("proxy", "test")
    assert guarded.client.verify() == "equal", "an open gate is as it should be"
    guarded.client.recapture("proxy")
    assert guarded.nft("list", "ruleset") == before, "nothing is left of the comparison"


# --- gates


def test_rules_that_grew_step_by_step_are_as_those_made_at_once(guarded: Guarded) -> None:
    steps = (
        decided(Posture.OUTBOUND, "240.240.0.7:6379"),
        decided(Posture.PERMISSIVE, "240.240.0.7:6379", services=(declared("web", 80, 8080),)),
        decided(Posture.PERMISSIVE, "240.240.0.7:6379", capture_dns=True),
        decided(Posture.OUTBOUND, "240.240.0.7:6379", capture_dns=True),
    )
    for intent in (*steps, *reversed(steps)):
        guarded.client.apply(nft.render(intent))
        assert guarded.client.verify() == "equal", intent


def test_a_dying_proxy_opens_the_gate_within_100_ms(guarded: Guarded) -> None:
    """By the guard's own clock, and the best of three: a loaded machine may take its time to run anybody."""
    guarded.client.apply(RULES)
    delays = []
    for _ in range(3):
        guarded.client.recapture("proxy")
        proxy, started = sleeper(guarded)
        assert guarded.client.watch("proxy", proxy.pid, started, opens=True)
        killed = time.time()
        proxy.send_signal(signal.SIGKILL)
        bypass = wait_until(lambda: guarded.client.state()["bypasses"].get("proxy"), 2, interval=0.002)
        assert str(proxy.pid) in bypass["reason"]
        delays.append(bypass["since_at"] - killed)
    assert min(delays) < 0.1
    assert "goto around" in guarded.nft("list", "map", "inet", "meshagent", "gate")

    guarded.client.recapture("proxy")
    assert "goto captured" in guarded.nft("list", "map", "inet", "meshagent", "gate")


def test_with_policy_closed_a_dying_proxy_opens_nothing(guarded: Guarded) -> None:
    guarded.client.apply(UNOWNED)
    proxy, started = sleeper(guarded)
    guarded.client.watch("proxy", proxy.pid, started, opens=False)
    proxy.kill()

    wait_until(lambda: not guarded.client.state()["watches"], 2)
    assert list(guarded.client.state()["bypasses"]) == ["hung"], "what would go to it is refused"
    assert "goto captured" in guarded.nft("list", "map", "inet", "meshagent", "gate")


def test_watching_a_process_that_is_gone_or_another_opens_at_once(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    proxy, started = sleeper(guarded)
    assert guarded.client.watch("proxy", proxy.pid, started + 1, opens=True) is False
    assert "proxy" in guarded.client.state()["bypasses"]


def test_a_newer_process_is_watched_instead_of_the_older(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    (old, old_start), (new, new_start) = sleeper(guarded), sleeper(guarded)
    guarded.client.watch("proxy", old.pid, old_start, opens=True)
    guarded.client.watch("proxy", new.pid, new_start, opens=True)
    old.kill()
    assert guarded.client.state()["bypasses"] == {}
    new.kill()
    wait_until(lambda: guarded.client.state()["bypasses"], 2)


def test_a_bypass_stays_over_a_replacement_of_the_rules(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    guarded.client.bypass("proxy", "test")
    guarded.client.apply(RULES)
    assert "goto around" in guarded.nft("list", "map", "inet", "meshagent", "gate")


def test_watching_a_hundred_processes_in_turn_leaves_no_descriptor_open(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    proxy, started = sleeper(guarded)

    def descriptors() -> int:
        return len(list(Path(f"/proc/{guarded.program.pid}/fd").iterdir()))

    guarded.client.watch("proxy", proxy.pid, started, opens=True)
    before = descriptors()
    for _ in range(100):
        guarded.client.watch("proxy", proxy.pid, started, opens=True)
    guarded.client.state()
    assert descriptors() <= before + 1
    proxy.kill()
    wait_until(lambda: guarded.client.state()["bypasses"], 2)


# --- a proxy that hangs


_PROXY = """
import selectors, socket, sys
listener = socket.create_server(("127.0.0.1", 15001))
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    connection.close()
"""


@pytest.fixture
def proxy(guarded: Guarded) -> Program:
    """Listens where Envoy does and closes at once, as Envoy does what has no destination."""
    program = guarded.host.popen([sys.executable, "-c", _PROXY], log="proxy")
    wait_until(lambda: "listening" in program.text(), 5)
    return program


def watch_closely(guarded: Guarded, proxy: Program, *, opens: bool) -> None:
    started = processes.start_time(proxy.pid)
    assert started is not None
    assert guarded.client.watch("proxy", proxy.pid, started, opens=opens, port=15001)


def dial(guarded: Guarded) -> str:
    """What becomes of a new connection to the claimed address; nothing else is at that address."""
    try:
        guarded.host.connect("10.99.0.1", 80, timeout=1).close()
    except OSError as error:
        return type(error).__name__
    return "connected"


def test_a_hung_proxy_is_gone_around_within_two_seconds_and_captured_again_when_it_goes_on(
    guarded: Guarded, proxy: Program
) -> None:
    guarded.client.apply(RULES)
    watch_closely(guarded, proxy, opens=True)
    stopped = time.time()
    proxy.send_signal(signal.SIGSTOP)
    bypass = wait_until(lambda: guarded.client.state()["bypasses"].get("proxy"), 10)
    assert bypass["since_at"] - stopped < 2.5, "2 s, and half a second for a loaded machine"
    assert "hangs" in bypass["reason"] and guarded.client.state()["hangs"] == 1
    guarded.client.recapture("proxy")
    assert "proxy" in guarded.client.state()["bypasses"], "the guard knows better than who believes it well"
    assert "goto around" in guarded.nft("list", "map", "inet", "meshagent", "gate")

    proxy.send_signal(signal.SIGCONT)
    wait_until(lambda: not guarded.client.state()["bypasses"], 10)
    assert "goto captured" in guarded.nft("list", "map", "inet", "meshagent", "gate")
    assert "goto" not in guarded.nft("list", "map", "inet", "meshagent", "refusing")


def test_with_policy_closed_a_hung_proxy_means_refused(guarded: Guarded, proxy: Program) -> None:
    guarded.client.apply(CLOSED)
    watch_closely(guarded, proxy, opens=False)
    assert dial(guarded) == "connected"
    proxy.send_signal(signal.SIGSTOP)
    wait_until(lambda: "hung" in guarded.client.state()["bypasses"], 10)
    assert dial(guarded) == "ConnectionRefusedError"
    assert "goto captured" in guarded.nft("list", "map", "inet", "meshagent", "gate")

    proxy.kill()
    wait_until(lambda: "ended" in guarded.client.state()["bypasses"]["hung"]["reason"], 20)
    assert dial(guarded) == "ConnectionRefusedError", "nobody listens"


@pytest.mark.parametrize("rules", [RULES, CLOSED], ids=["open", "closed"])
def test_a_stranger_on_the_port_of_a_dead_proxy_gets_nothing(guarded: Guarded, rules: Ruleset) -> None:
    """Also while nobody starts another proxy. One that works is handed connections again when the agent says so."""
    guarded.client.apply(rules)
    first, started = sleeper(guarded)
    guarded.client.watch("proxy", first.pid, started, opens=bool(rules.owner))
    answering(guarded.host, "127.0.0.1", 15001, "stranger")
    first.kill()
    wait_until(lambda: "hung" in guarded.client.state()["bypasses"], 20)
    if not rules.owner:
        assert dial(guarded) == "ConnectionRefusedError"
    assert "goto refused" in guarded.nft("list", "map", "inet", "meshagent", "refusing")
    assert guarded.client.verify() == "equal"

    second, started = sleeper(guarded)
    guarded.client.watch("proxy", second.pid, started, opens=bool(rules.owner))
    assert "hung" in guarded.client.state()["bypasses"], "it is there, but does it listen?"
    guarded.client.recapture("proxy")
    assert guarded.client.state()["bypasses"] == {}
    assert dial(guarded) == "connected"


def test_another_process_in_the_place_of_the_hung_one_starts_clean(guarded: Guarded, proxy: Program) -> None:
    guarded.client.apply(RULES)
    watch_closely(guarded, proxy, opens=True)
    proxy.send_signal(signal.SIGSTOP)
    wait_until(lambda: "hung" in guarded.client.state()["bypasses"], 10)
    other, started = sleeper(guarded)
    guarded.client.watch("proxy", other.pid, started, opens=True)
    guarded.client.recapture("proxy")
    assert guarded.client.state()["bypasses"] == {}


# --- the dead-man


def test_an_unconfirmed_change_rolls_back_though_the_agent_hangs_and_then_dies(guarded: Guarded) -> None:
    """The agent is a process of its own that applies, then stops; the timer is the guard's."""
    agent = guarded.host.popen([sys.executable, "-c", _AGENT, str(guarded.host.root)], log="agent")
    wait_until(lambda: "applied" in agent.text(), 20)
    agent.send_signal(signal.SIGSTOP)
    assert "table inet meshagent" in tables(guarded)

    wait_until(lambda: "table inet meshagent" not in tables(guarded), 15)
    agent.kill()
    assert tables(guarded) == ["table inet meshagent_anchor"], "connections that were captured live on"
    undone = guarded.client.state()["rolled_back"]
    assert undone["reason"] == "not confirmed in time" and undone["note"] == {"posture": "strict"}
    with pytest.raises(GuardRefusedError, match="rolled back"):
        guarded.client.apply(RULES)


_AGENT = """
import sys, time
from pathlib import Path
sys.path.insert(0, "")
from tests.guard.conftest import RULES
from meshagent.guard.client import GuardClient
from meshagent.guard.elements import Change
from meshagent.guard.state import Ruleset
client = GuardClient(Path(sys.argv[1]) / "run/meshagent/guard.sock")
client.deadman(4.0, {"posture": "strict"}, Ruleset(anchor=RULES.anchor))
client.apply(RULES)
print("applied", flush=True)
time.sleep(60)
"""


def test_a_confirmed_change_stays(guarded: Guarded) -> None:
    guarded.client.deadman(0.3, {})
    guarded.client.apply(RULES)
    assert guarded.client.confirm() is True
    assert guarded.client.confirm() is False
    deadline = time.monotonic() + 0.5
    wait_until(lambda: time.monotonic() > deadline, 2)
    assert "table inet meshagent" in tables(guarded)
    assert not (guarded.host.root / "var/lib/meshagent/rollback.json").exists()


def test_the_way_back_may_be_the_rules_that_were_there(guarded: Guarded) -> None:
    guarded.client.apply(UNOWNED)
    before = guarded.nft("list", "ruleset")
    guarded.client.deadman(0.3, {})
    guarded.client.apply(RULES)
    wait_until(lambda: guarded.client.state()["rolled_back"], 2)
    assert guarded.nft("list", "ruleset") == before


def test_a_guard_killed_during_a_trial_is_followed_by_one_that_keeps_the_deadline(guarded: Guarded) -> None:
    until = guarded.client.deadman(1.0, {"posture": "strict"}, Ruleset(anchor=RULES.anchor))
    guarded.client.apply(UNOWNED)
    guarded.kill()
    guarded.restart()
    pending = guarded.client.state()["pending"]
    assert pending is None or pending == {"until_at": until, "note": {"posture": "strict"}}

    undone = wait_until(lambda: guarded.client.state()["rolled_back"], 20)
    assert undone["at"] >= until - 0.1 and undone["note"] == {"posture": "strict"}
    assert "meshagent" not in guarded.tables(), "also rules the killed guard left behind"


def test_a_roll_back_is_remembered_by_the_next_guard_until_it_is_acknowledged(guarded: Guarded) -> None:
    guarded.client.deadman(0.1, {"posture": "strict"})
    wait_until(lambda: guarded.client.state()["rolled_back"], 2)
    guarded.program.kill()
    guarded.restart()
    assert guarded.client.state()["rolled_back"]["note"] == {"posture": "strict"}

    guarded.client.acknowledge()
    guarded.client.apply(RULES)
    assert guarded.client.state()["rolled_back"] is None


def test_a_trial_of_an_earlier_boot_counts_as_rolled_back(guarded: Guarded) -> None:
    guarded.client.deadman(60, {"posture": "strict"})
    guarded.program.kill()
    file = guarded.host.root / "var/lib/meshagent/rollback.json"
    file.write_text(file.read_text().replace('"boot": "', '"boot": "another-'))
    guarded.restart()
    assert "restarted" in guarded.client.state()["rolled_back"]["reason"]


def test_losing_every_client_neither_stops_nor_extends_the_timer(guarded: Guarded) -> None:
    other = GuardClient(guarded.host.root / "run/meshagent/guard.sock")
    until = other.deadman(0.5, {})
    other.close()
    undone = wait_until(lambda: guarded.client.state()["rolled_back"], 3)
    assert until <= undone["at"] < until + 1


def test_the_guard_imports_next_to_nothing() -> None:
    """Its start is what a host waits for when everything else is down; 50 ms in all, a third party module is 20."""
    names = subprocess.run([sys.executable, "-c", _IMPORTS], capture_output=True, text=True, check=True).stdout.split()
    beside = {name for name in names if name.split(".")[1] not in ("guard", "model")}
    assert beside <= {"meshagent.machine", "meshagent.machine.notify"}, "a few lines that tell systemd how it is"


_IMPORTS = """
import sys
before = set(sys.modules)
import meshagent.guard.loop
others = [name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names]
assert all(name.split(".")[0] == "meshagent" for name in others), others
print(*(name for name in others if name != "meshagent"))
"""
