"""One version of the guard follows another: nothing that it holds is let go."""

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import meshagent
from meshagent.agent.guarding import upgrade_guard
from meshagent.guard import processes
from meshagent.guard.client import GuardClient, GuardRefusedError, command
from meshagent.guard.state import Ruleset
from meshagent.lab import Lab
from meshagent.lab.waiting import wait_until
from meshagent.model.paths import Paths
from tests.guard.callers import Callers, answering
from tests.guard.conftest import CLOSED, RULES, Guarded

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where another version of the package is."""
    place = tmp_path_factory.mktemp("older")
    source = Path(meshagent.__file__).parent
    shutil.copytree(source, place / "meshagent", ignore=shutil.ignore_patterns("__pycache__", "pb", "hub", "demo"))
    init = place / "meshagent/__init__.py"
    init.write_text(init.read_text().replace(meshagent.__version__, "0.0.9"))
    return place


@pytest.fixture
def old_guard(guard_lab: Lab, older: Path) -> Iterator[Guarded]:
    host = guard_lab.host(f"host-{len(guard_lab.hosts)}")
    argv = ["env", f"PYTHONPATH={older}", *command(host.root)]
    made = Guarded(host, host.popen(argv, log="guard"), GuardClient(host.root / "run/meshagent/guard.sock"))
    assert wait_until(made.client.state)["version"] == "0.0.9"
    yield made
    made.client.close()
    made.program.stop()


def upgrade(guarded: Guarded) -> None:
    assert upgrade_guard(Paths(guarded.host.root), guarded.client)
    assert guarded.client.state()["version"] == meshagent.__version__


@pytest.mark.parametrize("rules", [RULES, CLOSED], ids=["open", "closed"])
def test_no_connection_goes_around_and_none_fails_while_the_guard_is_upgraded(
    old_guard: Guarded, rules: Ruleset
) -> None:
    answering(old_guard.host, "127.0.0.1", 15001, "proxy")
    old_guard.client.apply(rules)
    callers = Callers(old_guard.host, "10.99.0.1", 80)  # nobody is there: who isn't captured fails
    callers.more(20)
    handles = old_guard.nft("--handle", "--stateless", "list", "table", "inet", "meshagent")
    pid = old_guard.client.state()["pid"]

    upgrade(old_guard)
    callers.more(20)
    assert set(callers.stop()) == {"proxy"}
    assert old_guard.nft("--handle", "--stateless", "list", "table", "inet", "meshagent") == handles, "never replaced"
    assert old_guard.client.state()["pid"] == pid, "whoever started it or watches it notices nothing"
    assert "not permitted" in old_guard.nft("delete", "table", "inet", "meshagent", check=False)


def test_the_new_version_replaces_updates_and_removes_what_the_old_one_made(old_guard: Guarded) -> None:
    old_guard.client.apply(RULES)
    upgrade(old_guard)
    old_guard.client.apply(CLOSED)
    old_guard.client.apply(RULES)
    assert old_guard.client.verify() == "equal"
    assert old_guard.program.stop() == 0
    assert old_guard.nft("list", "tables") == "table inet meshagent_anchor\n"


def test_a_guard_killed_after_its_upgrade_still_leaves_its_table_to_the_next(old_guard: Guarded) -> None:
    old_guard.client.apply(RULES)
    upgrade(old_guard)
    assert old_guard.client.state()["kept"] is True
    old_guard.kill()
    assert old_guard.tables() == ["meshagent", "meshagent_anchor"]
    old_guard.restart()
    assert old_guard.client.state()["digest"] == "rules"
    assert "not permitted" in old_guard.nft("delete", "table", "inet", "meshagent", check=False)


def test_watches_bypasses_and_the_dead_man_go_on(old_guard: Guarded) -> None:
    proxy = old_guard.host.popen(["sleep", "60"])
    started = processes.start_time(proxy.pid)
    assert started is not None
    old_guard.client.apply(RULES)
    old_guard.client.watch("proxy", proxy.pid, started, opens=True)
    until = old_guard.client.deadman(4, {"posture": "strict"}, Ruleset(anchor=RULES.anchor))
    upgrade(old_guard)
    pending = old_guard.client.state()["pending"]  # a machine that is busy may take longer than the trial
    assert pending is None or pending == {"until_at": until, "note": {"posture": "strict"}}
    proxy.send_signal(signal.SIGKILL)
    wait_until(lambda: "proxy" in old_guard.client.state()["bypasses"], 20)
    undone = wait_until(lambda: old_guard.client.state()["rolled_back"], 20)
    assert undone["at"] >= until


def test_a_successor_that_can_not_be_run_changes_nothing(old_guard: Guarded) -> None:
    old_guard.client.apply(RULES)
    with pytest.raises(GuardRefusedError):
        old_guard.client.succeed(["/nowhere/python"], {})
    not_a_program = old_guard.host.root / "program"
    not_a_program.write_text("this is no program")
    not_a_program.chmod(0o755)
    old_guard.client.succeed([str(not_a_program)], {})
    assert wait_until(old_guard.client.state)["version"] == "0.0.9"
    wait_until(lambda: "this one goes on" in old_guard.log, 5)
    assert old_guard.nft("list", "table", "inet", "meshagent")


def test_a_caller_that_waits_over_the_upgrade_gets_its_answer(old_guard: Guarded) -> None:
    old_guard.client.apply(RULES)
    failed: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                client = GuardClient(old_guard.host.root / "run/meshagent/guard.sock")
                assert client.state()["installed"]
                client.close()
        except BaseException as error:
            failed.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    upgrade(old_guard)
    time.sleep(0.2)  # and a while after it
    done.set()
    asking.join(10)
    assert failed == []


def test_a_reload_makes_the_guard_the_program_that_is_installed_now(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    handles = guarded.nft("--handle", "--stateless", "list", "table", "inet", "meshagent")
    pid = guarded.client.state()["pid"]
    guarded.host.run([*command(guarded.host.root), "--reload"])
    assert b"--follow" in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert guarded.client.state()["pid"] == pid
    assert guarded.nft("--handle", "--stateless", "list", "table", "inet", "meshagent") == handles


def test_a_reload_without_a_guard_says_so(guarded: Guarded) -> None:
    guarded.program.stop()
    done = guarded.host.run([*command(guarded.host.root), "--reload"], check=False)
    assert done.returncode == 1 and "the guard can't be reloaded" in done.stderr
