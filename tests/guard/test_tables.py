"""Who holds the table, by kernel and policy: what a flush does, what a killed guard leaves, what the next one finds."""

import json
import signal
import sys
from dataclasses import replace

import pytest

from meshagent.guard import keeping, processes
from meshagent.guard.elements import Change
from meshagent.guard.libnftables import Context
from meshagent.guard.nftquery import OWNER, PERSIST, inet_table_flags
from meshagent.guard.state import Ruleset
from meshagent.lab.program import Program
from meshagent.lab.waiting import wait_until
from tests.guard.callers import Callers, answering
from tests.guard.conftest import CLOSED, RULES, TABLE, UNOWNED, Guarded

pytestmark = pytest.mark.root

KEY = bytes((10, 99, 0, 2, 0, 81))
BOTH = ["meshagent", "meshagent_anchor"]
POLICIES = pytest.mark.parametrize("rules", [RULES, CLOSED], ids=["open", "closed"])


def rules_of(guarded: Guarded) -> str:
    """Everything in the table with its handles; not who owns it."""
    listing = guarded.nft("--handle", "--stateless", "list", "table", "inet", "meshagent")
    return "".join(line for line in listing.splitlines(True) if not line.startswith(("table", "\tflags")))


def settled(guarded: Guarded) -> None:
    """Until the guard has written down what it knows."""
    file = guarded.host.root / "run/meshagent/guard.state"

    def written() -> bool:
        known, said = json.loads(file.read_text())["state"], guarded.client.state()
        pids = {gate: watch[0] for gate, watch in known["watches"].items()}
        asked = {gate: watch["pid"] for gate, watch in said["watches"].items()}
        return bool(known["installed"]["digest"] == said["digest"] and pids == asked)

    wait_until(written, 20, "the guard to write down what it knows")


# --- kernel 6.9 and newer: kept


@POLICIES
def test_a_kept_table_is_out_of_everybodys_reach_under_either_policy(guarded: Guarded, rules: Ruleset) -> None:
    assert guarded.client.apply(rules) is True
    before = rules_of(guarded)
    for _ in range(3):
        guarded.nft("flush", "ruleset")
    for words in (["delete", "table", "inet", "meshagent"], ["flush", "chain", "inet", "meshagent", "out"]):
        assert "not permitted" in guarded.nft(*words, check=False)
    assert rules_of(guarded) == before
    wait_until(lambda: guarded.tables() == BOTH, 20, "the anchor to be back")
    assert guarded.client.state()["kept"] is True


@POLICIES
def test_a_killed_guard_leaves_the_kept_table_and_the_next_one_takes_it_over_untouched(
    guarded: Guarded, rules: Ruleset
) -> None:
    guarded.client.apply(rules)
    guarded.client.update({"claimed4": Change(add=KEY)}, rules.digest, "more")
    settled(guarded)
    before = rules_of(guarded)
    guarded.kill()
    assert rules_of(guarded) == before

    guarded.restart()
    assert rules_of(guarded) == before, "not one rule was made again"
    assert "not permitted" in guarded.nft("delete", "table", "inet", "meshagent", check=False)
    state = guarded.client.state()
    assert (state["digest"], state["owned"], state["kept"]) == ("more", True, True)
    assert guarded.client.verify() == "equal"
    guarded.client.remove(anchor=True)
    assert guarded.tables() == []


def test_what_cannot_be_the_last_guards_rules_is_taken_over_and_then_replaced_inside_the_table(
    guarded: Guarded,
) -> None:
    guarded.client.apply(CLOSED)
    settled(guarded)
    guarded.kill()
    guarded.nft("add", "chain", "inet", "meshagent", "foreign")
    handle = guarded.nft("--handle", "list", "tables")
    guarded.restart()
    assert "not permitted" in guarded.nft("flush", "table", "inet", "meshagent", check=False), "taken over at once"
    assert guarded.client.state()["installed"] is False

    guarded.client.apply(RULES)
    assert guarded.client.verify() == "equal"
    assert guarded.nft("--handle", "list", "tables") == handle, "the very same table"
    assert guarded.program.stop() == 0
    assert guarded.tables() == ["meshagent_anchor"], "ending the guard is the emergency switch"


def test_the_next_guard_acts_on_a_proxy_that_died_while_there_was_none(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    proxy = guarded.host.popen(["sleep", "60"])
    started = processes.start_time(proxy.pid)
    assert started is not None
    assert guarded.client.watch("proxy", proxy.pid, started, opens=True)
    settled(guarded)
    guarded.kill()
    proxy.kill()
    guarded.restart()
    assert "proxy" in guarded.client.state()["bypasses"]
    assert "goto around" in guarded.nft("list", "map", "inet", "meshagent", "gate")


def test_without_its_table_what_the_last_guard_knew_is_worth_nothing(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    settled(guarded)
    guarded.kill()
    guarded.nft("flush", "ruleset")
    guarded.restart()
    assert guarded.client.state()["installed"] is False and guarded.tables() == []


@pytest.mark.parametrize("kind", ["guarded", "owning", "ownerless"])
def test_changing_the_policy_and_back_loses_no_connection(kind: str, request: pytest.FixtureRequest) -> None:
    """With a kept table the contents are exchanged; else a whole table follows another in one transaction."""
    guarded: Guarded = request.getfixturevalue(kind)
    answering(guarded.host, "127.0.0.1", 15001, "proxy")
    guarded.client.apply(RULES)
    handle = guarded.nft("--handle", "list", "tables").splitlines()[0]
    callers = Callers(guarded.host, "10.99.0.1", 80)  # nobody is there: who isn't captured fails
    for _ in range(5):
        for rules in (CLOSED, RULES):
            callers.more(4)
            guarded.client.apply(rules)
            assert guarded.client.verify() == "equal"
    answers = callers.stop()
    if kind == "guarded":
        assert set(answers) == {"proxy"}
        assert guarded.nft("--handle", "list", "tables").splitlines()[0] == handle, "the very same table"


def test_rules_that_stay_go_on_counting_when_others_come_and_go(guarded: Guarded) -> None:
    def counted() -> str:
        listing = guarded.nft("list", "chain", "inet", "meshagent", "captured")
        return next(line.strip() for line in listing.splitlines() if "redirect" in line)

    answering(guarded.host, "127.0.0.1", 15001, "proxy")
    guarded.client.apply(RULES)
    callers = Callers(guarded.host, "10.99.0.1", 80)
    callers.more(4)
    callers.stop()
    before = counted()
    assert "packets 0" not in before
    more = TABLE.replace("\tchain around {", "\tchain more {\n\t\tcounter\n\t}\n\tchain around {")
    for rules in (replace(RULES, rules=more, digest="more"), RULES):
        guarded.client.apply(rules)
        assert counted() == before
        assert guarded.client.verify() == "equal"


def test_the_policy_changes_also_while_the_proxy_is_dead(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    guarded.client.bypass("proxy", "test")
    guarded.client.apply(CLOSED)
    assert "goto captured" in guarded.nft("list", "map", "inet", "meshagent", "gate")
    assert guarded.client.verify() == "equal" and guarded.client.state()["bypasses"] == {}


def test_rules_that_the_kernel_refuses_leave_no_table_behind(guarded: Guarded) -> None:
    bad = Ruleset(TABLE.replace("goto captured", "goto absent"), digest="bad")
    with pytest.raises(Exception, match="No such file"):
        guarded.client.apply(bad)
    assert guarded.tables() == []
    guarded.client.apply(RULES)
    assert guarded.client.verify() == "equal"


# --- older kernels


def test_on_older_kernels_a_killed_guard_with_policy_open_leaves_only_the_anchor(owning: Guarded) -> None:
    assert owning.client.apply(RULES) is True
    owning.kill()
    wait_until(lambda: owning.tables() == ["meshagent_anchor"], 20)


@pytest.mark.parametrize("kind", ["owning", "ownerless"])
def test_on_older_kernels_the_next_guard_takes_over_what_policy_closed_left(
    kind: str, request: pytest.FixtureRequest
) -> None:
    guarded: Guarded = request.getfixturevalue(kind)
    assert guarded.client.apply(CLOSED) is False
    settled(guarded)
    before, beside = rules_of(guarded), guarded.tables()
    assert beside == (["meshagent", "meshagent_anchor", "meshagent_hold"] if kind == "owning" else BOTH)
    guarded.kill()
    wait_until(lambda: guarded.tables() == BOTH, 20, "what was the guard's own to go")
    assert rules_of(guarded) == before

    guarded.restart()
    assert rules_of(guarded) == before and guarded.tables() == beside
    assert guarded.client.state()["digest"] == "closed"
    guarded.client.remove(anchor=True)
    assert guarded.tables() == []


def test_the_hold_goes_when_the_rules_are_owned_or_gone(owning: Guarded) -> None:
    owning.client.apply(UNOWNED)
    assert "meshagent_hold" in owning.tables()
    assert "not permitted" in owning.nft("delete", "table", "inet", "meshagent_hold", check=False)
    owning.client.apply(RULES)
    assert owning.tables() == BOTH
    owning.client.apply(UNOWNED)
    owning.client.apply(Ruleset(anchor=RULES.anchor))
    assert owning.tables() == ["meshagent_anchor"]


@pytest.mark.parametrize("kind", ["guarded", "owning"])
def test_no_captured_connection_stalls_over_flushes(kind: str, request: pytest.FixtureRequest) -> None:
    """Servers behind the proxy that never stop talking: a lost redirect would reset each at its next word."""
    guarded: Guarded = request.getfixturevalue(kind)
    talking = _talking(guarded)
    guarded.client.apply(CLOSED)
    listeners = guarded.host.popen([sys.executable, "-c", _LISTENING, "8"], log="listening")
    wait_until(lambda: "all hear" in listeners.text(), 20)
    for number in range(10):
        guarded.nft("flush", "ruleset")
        listeners.send_signal(signal.SIGUSR1)
        wait_until(
            lambda number=number: f"round {number} all hear" in listeners.text(),  # type: ignore[misc]
            20,
            f"all 8 connections to go on after flush {number}: {listeners.text()[-300:]}",
        )
        wait_until(lambda: guarded.client.verify() == "equal" and set(BOTH) <= set(guarded.tables()), 20)
    listeners.kill()
    talking.kill()


def _talking(guarded: Guarded) -> Program:
    program = guarded.host.popen([sys.executable, "-c", _TALKING], log="talking")
    wait_until(lambda: "listening" in program.text(), 20)
    return program


#: Every connection hears something each millisecond or so.
_TALKING = """
import selectors, socket, time
listener = socket.create_server(("127.0.0.1", 15001), backlog=64)
listener.setblocking(False)
print("listening", flush=True)
talks = []
while True:
    try:
        connection, _ = listener.accept()
        connection.setblocking(False)
        talks.append(connection)
    except BlockingIOError:
        pass
    for connection in list(talks):
        try:
            connection.send(b"word")
        except BlockingIOError:
            pass
        except OSError:
            talks.remove(connection)
    time.sleep(0.001)
"""

_LISTENING = """
import select, signal, socket, sys
asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
hears = [socket.create_connection(("10.99.0.1", 80), 10) for _ in range(int(sys.argv[1]))]
def all_hear():
    for one in hears:  # what waits was sent before
        one.setblocking(False)
        try:
            while True:
                if not one.recv(1 << 20):
                    raise SystemExit("closed")
        except BlockingIOError:
            pass
        one.settimeout(15)
        for _ in range(3):
            if not one.recv(16):
                raise SystemExit("closed")
all_hear()
print("all hear", flush=True)
done = 0
while True:
    signal.sigtimedwait([], 0.005)
    while done < len(asked):
        try:
            all_hear()
        except OSError as error:
            raise SystemExit(f"round {done} {error!r}")
        print(f"round {done} all hear", flush=True)
        done += 1
"""


# --- the messages themselves


def test_a_kept_table_is_made_taken_over_and_left_by_its_socket() -> None:
    first, second = Context(), Context()
    assert keeping.can_keep(first.descriptor, "kept") and inet_table_flags("kept") is None, "a dry run"
    keeping.keep(first.descriptor, "kept")
    keeping.keep(first.descriptor, "kept")
    assert inet_table_flags("kept") == OWNER | PERSIST
    with pytest.raises(OSError, match="Operation not permitted"):
        keeping.keep(second.descriptor, "kept")
    first.close()
    wait_until(lambda: inet_table_flags("kept") == PERSIST, 20)
    keeping.keep(second.descriptor, "kept")
    second.run("add chain inet kept c\n")  # libnftables' own socket is as it was
    assert second.exists("kept")
    second.run("delete table inet kept\n")
    second.close()


def test_a_table_made_without_the_flag_never_gets_it() -> None:
    context = Context()
    context.run("table inet kept { }\n")
    with pytest.raises(OSError, match="not supported"):
        keeping.keep(context.descriptor, "kept")
    context.run("delete table inet kept\n")
    context.close()


def test_a_replaced_hold_is_no_reason_to_fail(owning: Guarded) -> None:
    owning.client.apply(CLOSED)
    owning.client.apply(replace(CLOSED, digest="again"))
    assert owning.client.verify() == "equal" and "meshagent_hold" in owning.tables()
