"""Lab hosts: separate machines as far as a program can see, and gone without a trace."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from meshagent.lab import Lab, netns, sweep, wait_until
from meshagent.lab.snapshot import diff
from meshagent.machine import process
from meshagent.machine.segments import segment
from meshagent.machine.state import write_state
from meshagent.model.paths import Paths

pytestmark = pytest.mark.root

#: No proxy of ours ever takes these (agent.envoy.record.BASE_IDS).
UNUSED = range(1_000, 1_000_000)


def test_hosts_reach_each_other_by_name_over_both_families(lab: Lab) -> None:
    web, cache = lab.host("web"), lab.host("cache")
    for address in cache.addresses:
        with cache.listen(6379, address) as server, web.connect(address, 6379) as client:
            accepted, peer = server.accept()
            with accepted:
                assert peer[0] in web.addresses
                accepted.sendall(b"+PONG")
                assert client.recv(16) == b"+PONG"
    resolved = web.run(["getent", "ahosts", "cache.lab.test"]).stdout
    assert all(address in resolved for address in cache.addresses)


def test_a_lab_of_one_family_has_only_that(lab_of_one_family: Lab) -> None:
    host = lab_of_one_family.host("web")
    family = lab_of_one_family.families[0]
    assert bool(host.address4) == (family == 4)
    assert bool(host.address6) == (family == 6)
    with host.listen(80) as server, host.connect(host.address, 80):
        assert server.accept()[1][0] == host.address


def test_outside_of_the_lab_is_unreachable_within_seconds(lab: Lab) -> None:
    web = lab.host("web")
    for address in ("192.0.2.1", "2001:db8::1"):
        with pytest.raises(OSError, match=r"No route to host|Network is unreachable"):
            web.connect(address, 80, timeout=3)


def test_files_users_and_name_of_a_host_are_its_own(lab: Lab) -> None:
    before = Path("/etc/passwd").read_bytes()
    web = lab.host("web")
    web.run(["useradd", "--system", "--no-log-init", "ma-someone"])
    assert "ma-someone" in web.path("/etc/passwd").read_text()
    assert Path("/etc/passwd").read_bytes() == before
    assert web.run(["hostname"]).stdout.strip() == "web"
    assert lab.resolver.host.address4 in web.run(["cat", "/etc/resolv.conf"]).stdout


def test_a_difference_names_what_changed_and_a_given_back_host_shows_none(lab: Lab) -> None:
    web = lab.host("web")
    before = web.snapshot()
    web.run(["nft", "add table inet planted"])
    web.run(["ip", "rule", "add", "fwmark", "7", "table", "77", "priority", "77"])
    web.run(["ip", "route", "add", "local", "240.240.0.0/16", "dev", "lo"])
    web.run(["useradd", "--system", "--no-log-init", "ma-someone"])
    (web.root / "left").write_text("over")
    web.run(["sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1"])
    sleeper = web.popen(["sleep", "1000"])
    wait_until(lambda: process.comm(sleeper.pid) == "sleep")
    found = "\n".join(diff(before, web.snapshot()))
    for sign in ("planted", "0x7", "240.240.0.0/16", "passwd", "left", "route_localnet", "sleep 1000"):
        assert sign in found
    sleeper.kill()
    web.run(["nft", "delete table inet planted"])
    web.run(["ip", "rule", "del", "priority", "77"])
    web.run(["ip", "route", "del", "local", "240.240.0.0/16", "dev", "lo"])
    web.run(["userdel", "ma-someone"])
    web.run(["sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=0"])
    (web.root / "left").unlink()
    assert diff(before, web.snapshot()) == []


def test_a_capture_holds_everything_between_ready_and_stop(lab: Lab) -> None:
    web, cache = lab.host("web"), lab.host("cache")
    with cache.listen(80) as server, web.capture("tcp port 80") as capture:
        client = web.connect(cache.address, 80)
        accepted, _ = server.accept()
        with client, accepted:
            client.sendall(b"first and last")
            accepted.recv(100)
    assert capture.contains(b"first and last")
    assert not capture.contains(b"marker")
    assert capture.tshark("tcp.len > 0", "ip.src", "tcp.dstport") == [[web.address, "80"]]


def test_everything_ends_with_the_lab_even_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError) as caught, Lab() as lab:
        web = lab.host("web")
        program = web.popen(["sh", "-c", "echo started; trap '' TERM; setsid sleep 1000 & wait"], log="stubborn")
        wait_until(lambda: len(web.processes()) == 2)
        pids, directory = [program.pid, *web.processes()], lab.directory
        _ = 1 / 0
    assert not any(process.start_time(pid) for pid in pids)
    assert not directory.exists()
    assert any("started" in note for note in caught.value.__notes__)


def test_orphans_of_a_host_are_buried(lab: Lab) -> None:
    web = lab.host("web")
    pid = int(web.run(["sh", "-c", "setsid sleep 1 >/dev/null 2>&1 & echo $!"]).stdout)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), timeout=5, what="the orphan's end")


_KILLED = """
import sys, time
from meshagent.lab import Lab
with Lab() as lab:
    lab.host("web").popen(["sleep", "1000"])
    if "keep" in sys.argv:
        lab.keep()
    print(lab.name, flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("kept", [False, True], ids=["killed", "kept"])
def test_the_next_run_removes_what_a_killed_one_left_but_not_what_was_kept(kept: bool) -> None:
    argv = [sys.executable, "-c", _KILLED, *(["keep"] if kept else [])]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        name = run.stdout.readline().strip()
        assert name not in sweep(kept=True)
        run.kill()
    assert (name in sweep()) is not kept
    if kept:
        assert Path("/run", name).exists()
        assert name in sweep(kept=True)
    assert not Path("/run", name).exists()


@pytest.mark.parametrize("ends", [True, False], ids=["ended", "killed"])
def test_the_shared_memory_of_its_proxies_ends_with_the_lab_and_nobody_elses(ends: bool) -> None:
    """A root's own number, those of two epochs that ran with others, and never that of a root it is a copy of."""
    numbers = dict(zip(("own", "running", "older", "stranger", "original"), random.sample(UNUSED, 5), strict=True))
    for number in numbers.values():
        segment(number).touch()
    try:
        with subprocess.Popen([sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            name = run.stdout.readline().strip()
            web, copy = Paths(Path("/run", name, "web")), Paths(Path("/run", name, "copy"))
            for paths in (web, copy):
                paths.state.mkdir(parents=True)
                paths.run.mkdir(parents=True)
            write_state(web.state / "proxy.json", {"base_id": numbers["own"], "root": str(web.root)})
            epochs = {"base_id": numbers["running"], "parent": {"base_id": numbers["older"]}}
            write_state(web.run / "proxy.json", epochs)
            write_state(copy.state / "proxy.json", {"base_id": numbers["original"], "root": "/elsewhere"})
            write_state(copy.run / "proxy.json", {"base_id": numbers["original"]})
            run.send_signal(signal.SIGINT if ends else signal.SIGKILL)
        sweep()
        assert {name for name, number in numbers.items() if segment(number).exists()} == {"stranger", "original"}
    finally:
        for number in numbers.values():
            segment(number).unlink(missing_ok=True)


_INTERRUPTED = """
import time
from meshagent.lab import Lab
lab = Lab()
print(lab.name, flush=True)
with lab:
    for number in range(50):
        lab.host(f"h{number}").popen(["sleep", "1000"])
    time.sleep(1000)
"""


@pytest.mark.parametrize("after", [0.01, 0.03, 0.1, 0.5])
def test_ctrl_c_at_any_moment_leaves_nothing_that_the_next_run_would_not_remove(after: float) -> None:
    with subprocess.Popen([sys.executable, "-c", _INTERRUPTED], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        name = run.stdout.readline().strip()
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(after)
        run.send_signal(signal.SIGINT)
        run.wait(20)
    sweep()
    assert not Path("/run", name).exists()
    assert list(netns.holders(name)) == []


def test_the_network_it_is_started_in_is_not_touched() -> None:
    def network() -> list[str]:
        return [process.run(["ip", "-o", what]).stdout for what in ("address", "link", "rule", "route")]

    before = network()
    with Lab() as lab:
        lab.host("web")
        assert network() == before


def test_names_outside_the_lab_do_not_exist_and_big_answers_come_by_tcp(lab: Lab) -> None:
    web = lab.host("web")
    lab.resolver.add("big.example.test", "TXT", *(f'"{number:03} {"x" * 200}"' for number in range(20)))
    lab.resolver.add("alias.example.test", "CNAME", "web.lab.test.")
    assert "NXDOMAIN" in web.run(["dig", "nowhere.example.test"]).stdout
    assert len(web.run(["dig", "+short", "big.example.test", "TXT"]).stdout.splitlines()) == 20
    assert web.address4 in web.run(["dig", "+short", "alias.example.test"]).stdout
    asked = [(query.name, query.transport) for query in lab.resolver.queries()]
    assert ("big.example.test", "tcp") in asked
    assert ("nowhere.example.test", "udp") in asked


def test_a_program_that_is_missing_or_fails_is_an_error_that_shows_the_command(lab: Lab) -> None:
    web = lab.host("web")
    with pytest.raises(process.ProgramError, match="no-such-program"):
        web.run(["no-such-program"])
    assert web.run(["false"], check=False).returncode == 1


def test_ctrl_c_reaches_the_lab_and_not_its_hosts(lab: Lab) -> None:
    sleeper = lab.host("web").popen(["sleep", "1000"])
    assert os.getsid(sleeper.pid) != os.getsid(0)
    assert sleeper.stop(number=signal.SIGTERM) == -signal.SIGTERM


def test_sockets_of_a_host_are_not_on_this_machine(lab: Lab) -> None:
    with lab.host("web").listen(0, "127.0.0.1") as server:
        port = server.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_removed_host_is_gone_at_once_and_nobody_answers_at_its_address(lab: Lab) -> None:
    one, two = lab.host("one"), lab.host("two")
    program = two.popen(["sleep", "infinity"])
    server = two.listen(7000)
    one.connect(two.address, 7000).close()
    server.close()
    lab.remove(two)
    assert not program.alive and "two" not in lab.hosts
    with pytest.raises(OSError):
        one.connect(two.address, 7000, timeout=1.5)
    assert one.run(["getent", "hosts", "two.lab.test"], check=False).returncode != 0
    assert lab.host("three").run(["true"]).returncode == 0


def test_a_directory_left_between_two_steps_of_its_making_is_swept_and_a_strangers_is_not() -> None:
    torn, stranger = Path("/run/ma-00000a"), Path("/run/ma-00000b")
    torn.mkdir()
    (torn / "lab.json.new").write_text("{")
    stranger.mkdir()
    (stranger / "data").write_text("x")
    try:
        assert torn.name in sweep() and not torn.exists() and stranger.exists()
    finally:
        (stranger / "data").unlink()
        stranger.rmdir()


def test_a_kept_lab_has_one_way_in(lab: Lab) -> None:
    host = lab.host("one")
    entrance = lab.keep()
    lab._kept = False
    asked = subprocess.run([entrance, "one", "sh", "-c", 'hostname; echo "$MESHAGENT_ROOT"'], capture_output=True)
    assert asked.stdout.decode().split() == ["one", str(host.root)]
    assert subprocess.run([entrance, "nobody", "true"], capture_output=True).returncode == 2


def test_a_signal_that_comes_while_a_lab_is_removed_waits_until_it_is_gone() -> None:
    code = """
import os, signal, sys
from meshagent.lab.signals import uninterrupted
try:
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        print("cleaned up")
    print("never")
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["cleaned up", "interrupted"]


def test_a_program_tells_only_its_own_output_in_a_log_it_shares_with_an_earlier_one(lab: Lab) -> None:
    web = lab.host("web")
    assert web.popen(["echo", "first"], log="shared").wait() == 0
    second = web.popen(["echo", "second"], log="shared")
    assert second.wait() == 0
    assert second.text() == "second\n"
    assert second.log.read_text() == "first\nsecond\n"


def test_a_lab_that_is_put_away_meanwhile_is_no_error_of_a_sweep() -> None:
    """Its owner takes no lock for that: a directory may go between two looks at it."""
    directory, done = Path("/run/ma-0ddba1"), threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            with contextlib.suppress(FileNotFoundError):  # the sweep takes an empty one for abandoned
                directory.mkdir(exist_ok=True)
                (directory / "theirs").touch()
            shutil.rmtree(directory, ignore_errors=True)

    beside = threading.Thread(target=come_and_go)
    beside.start()
    try:
        for _ in range(2_000):
            sweep()
    finally:
        done.set()
        beside.join()
        shutil.rmtree(directory, ignore_errors=True)
