"""The guard as a process: one per root, its socket, its clients, its end."""

import json
import signal
import socket
import stat

import pytest

from meshagent.agent.guarding import replace_guard
from meshagent.guard import wire
from meshagent.guard.client import GuardClient, GuardRefusedError, GuardUnreachableError, command
from meshagent.lab.waiting import wait_until
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths
from tests.guard.conftest import RULES, Guarded

pytestmark = pytest.mark.root


def raw(guarded: Guarded) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    connection.connect(str(guarded.host.root / "run/meshagent/guard.sock"))
    return connection


def ask(connection: socket.socket, line: bytes) -> dict[str, object]:
    connection.sendall(line)
    return dict(json.loads(connection.makefile().readline()))


def test_only_root_can_open_the_socket(guarded: Guarded) -> None:
    mode = (guarded.host.root / "run/meshagent/guard.sock").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_a_second_guard_of_the_same_root_refuses_to_start(guarded: Guarded) -> None:
    second = guarded.host.popen(command(guarded.host.root), log="second")
    assert second.wait() == 1
    assert "another guard of this root is running" in second.text()
    assert guarded.client.state()["pid"] == guarded.program.pid


def test_a_socket_left_behind_is_taken_over(guarded: Guarded) -> None:
    guarded.program.kill()
    assert (guarded.host.root / "run/meshagent/guard.sock").exists()
    guarded.restart()
    assert guarded.client.state()["pid"] == guarded.program.pid


def test_a_stop_takes_the_table_and_leaves_the_anchor(guarded: Guarded) -> None:
    guarded.client.apply(RULES)
    assert guarded.program.stop() == 0
    assert guarded.nft("list", "tables") == "table inet meshagent_anchor\n"
    assert not (guarded.host.root / "run/meshagent/guard.sock").exists()
    with pytest.raises(GuardUnreachableError, match="No such file"):
        guarded.client.state()


def test_quit_ends_it_too(guarded: Guarded) -> None:
    guarded.client.quit()
    assert guarded.program.wait() == 0


def test_a_hang_up_of_the_terminal_does_not_end_it(guarded: Guarded) -> None:
    guarded.program.send_signal(signal.SIGHUP)
    assert guarded.client.state()["pid"] == guarded.program.pid


def test_the_first_request_must_say_the_version(guarded: Guarded) -> None:
    with raw(guarded) as connection:
        assert ask(connection, wire.request(1, "state", {}))["error"]["code"] == "wrong-version"  # type: ignore[index]
        assert ask(connection, wire.request(2, "hello", {"version": 99}))["error"]["code"] == "wrong-version"  # type: ignore[index]
        assert ask(connection, wire.request(3, "hello", {"version": wire.VERSION}))["result"]
        assert ask(connection, wire.request(4, "state", {}))["result"]


@pytest.mark.parametrize(
    "garbage", [b"\n", b"\xff\xfe\n", b"{}\n", b"[1]\n", b'{"id":1,"method":"apply","params":{"rules":5}}\n']
)
def test_garbage_gets_an_error_and_the_guard_lives(guarded: Guarded, garbage: bytes) -> None:
    with raw(guarded) as connection:
        ask(connection, wire.request(1, "hello", {"version": wire.VERSION}))
        assert "error" in ask(connection, garbage)
    assert guarded.client.state()["pid"] == guarded.program.pid


def test_a_client_that_sends_without_end_is_dropped(guarded: Guarded) -> None:
    with raw(guarded) as connection, pytest.raises(OSError):
        for _ in range(wire.MAX_REQUEST // 65536 + 20):
            connection.sendall(b"x" * 65536)
    assert guarded.client.state()["pid"] == guarded.program.pid


def test_a_hanging_client_does_not_hold_up_the_others(guarded: Guarded) -> None:
    with raw(guarded) as hanging:
        hanging.sendall(b'{"id": 1, "method": "he')
        guarded.client.apply(RULES)
        assert guarded.client.state()["installed"]


def test_more_clients_than_it_serves_are_turned_away_not_waited_for(guarded: Guarded) -> None:
    guarded.client.close()
    crowd = [raw(guarded) for _ in range(20)]
    for connection in crowd:
        connection.close()
    assert wait_until(guarded.client.state, 2)["pid"] == guarded.program.pid


def test_an_unknown_method_or_gate_is_named(guarded: Guarded) -> None:
    with pytest.raises(GuardRefusedError) as unknown:
        guarded.client.call("explode")
    assert unknown.value.code == "unknown-method"
    with pytest.raises(GuardRefusedError, match="not a gate"):
        guarded.client.bypass("door", "why")
    with pytest.raises(GuardRefusedError, match="not a time"):
        guarded.client.deadman(-1, {})


def test_a_client_finds_a_restarted_guard_by_itself(guarded: Guarded) -> None:
    client = GuardClient(guarded.host.root / "run/meshagent/guard.sock")
    first = client.state()["pid"]
    guarded.program.stop()
    guarded.restart()
    assert client.state()["pid"] not in (first, 0)
    client.close()


def test_without_nf_tables_rights_it_says_so_in_one_line(guarded: Guarded) -> None:
    other = guarded.host.root.parent / "elsewhere"
    argv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *command(other)]
    program = guarded.host.popen(argv, log="powerless")
    assert program.wait() == 1
    assert "nftables can't be used here" in program.text()
    assert "Traceback" not in program.text()


def test_a_guard_that_a_person_ended_is_known_as_such_until_one_is_started(guarded: Guarded) -> None:
    """An agent must not switch the emergency switch back; what ``leave`` ends is nobody's emergency."""
    paths = Paths(guarded.host.root)
    guarded.client.quit()
    guarded.program.wait()
    assert not paths.guard_stopped.exists()
    guarded.restart()
    guarded.program.stop()
    assert paths.guard_stopped.exists()
    with pytest.raises(MeshagentError, match="was stopped"):
        replace_guard(paths)
    guarded.restart()
    assert not paths.guard_stopped.exists()
