"""A remote login is recognised by any one of its signs, and only where it matters."""

import os
import socket
import struct
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from meshagent.lab import Lab, recipes, wait_until
from meshagent.machine import login

OWN = {ip_address("10.0.0.2")}


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("10.0.0.1 50000 10.0.0.2 22", ("10.0.0.1", 50000, "10.0.0.2", 22)),
        ("::ffff:10.0.0.1 50000 ::ffff:10.0.0.2 22", ("10.0.0.1", 50000, "10.0.0.2", 22)),
        ("fe80::1%eth0 1 fe80::2%eth0 2222", ("fe80::1", 1, "fe80::2", 2222)),
        ("10.0.0.1 x 10.0.0.2 22", None),
        ("10.0.0.1 50000", None),
        ("", None),
    ],
)
def test_ssh_connection_is_read_or_refused(text: str, parsed: tuple[str, int, str, int] | None) -> None:
    expected = parsed and (ip_address(parsed[0]), parsed[1], ip_address(parsed[2]), parsed[3])
    assert login.parse_ssh_connection(text) == expected


def test_ancestors_go_up_to_the_first_process() -> None:
    chain = list(login.ancestors(os.getpid()))
    assert chain[:2] == [os.getpid(), os.getppid()]
    assert chain[-1] == 1


def test_terminals_of_remote_hosts_are_read_from_utmp(tmp_path: Path) -> None:
    def record(kind: int, line: bytes, host: bytes) -> bytes:
        return struct.pack("<hxxi32s4s32s256s", kind, 1, line, b"", b"root", host).ljust(384, b"\0")

    entries = [(7, b"pts/1", b"10.0.0.1"), (7, b"pts/2", b":0"), (8, b"pts/3", b"10.0.0.1"), (7, b"tty1", b"")]
    (tmp_path / "utmp").write_bytes(b"".join(record(*entry) for entry in entries) + b"torn")
    assert login.remote_terminals(tmp_path / "utmp") == {"pts/1"}
    assert login.remote_terminals(tmp_path / "none") == frozenset()


CODE = """
from meshagent.machine.login import remote_login
from meshagent.machine.netlink import addresses
found = remote_login({each.ip for each in addresses()})
print(found and (found.via, found.server_port, str(found.peer)))
"""


@pytest.mark.root
def test_a_session_over_ssh_is_known_with_its_port_and_peer_and_a_local_one_is_none(lab: Lab) -> None:
    admin, server = lab.host("admin"), lab.host("server")
    script = server.private / "who.py"
    script.write_text(CODE)
    assert server.run([sys.executable, str(script)]).stdout == "None\n"
    service = recipes.sshd(server, 2222)
    for address in server.addresses:
        expected = ("process", 2222, admin.address6 if ":" in address else admin.address4)
        seen = admin.run(recipes.ssh_argv(service, address, sys.executable, str(script))).stdout
        assert seen == f"{expected}\n"
    detached = ["env", "-i", "setsid", "-w", sys.executable, str(script)]
    assert "process" in admin.run(recipes.ssh_argv(service, server.address, *detached)).stdout


@pytest.mark.root
def test_a_session_of_the_machine_around_is_not_one_of_this_host(lab: Lab) -> None:
    web = lab.host("web")
    argv = [sys.executable, "-c", CODE]
    elsewhere = {"SSH_CONNECTION": "192.0.2.9 50000 192.0.2.1 22"}
    assert web.run(argv, env=elsewhere).stdout == "None\n"
    here = {"SSH_CONNECTION": f"192.0.2.9 50000 {web.address4} 2200"}
    assert web.run(argv, env=here).stdout == "('environment', 2200, '192.0.2.9')\n"


LOOK = """
import sys
from meshagent.machine.login import LoginLook
from meshagent.machine.netlink import addresses
look, own = LoginLook(), {each.ip for each in addresses()}
for _ in sys.stdin:
    found = look.look(own)
    print(sorted(found.servers), sorted(found.sessions), flush=True)
"""


@pytest.mark.root
def test_servers_and_sessions_are_seen_at_the_next_look_as_they_come_and_go(lab: Lab) -> None:
    """One long-lived look, as the agent's: what it saw before must not hide what is new."""
    admin, server = lab.host("admin"), lab.host("server")
    looking = subprocess.Popen(
        server.enter([sys.executable, "-c", LOOK]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    asks, tells = looking.stdin, looking.stdout
    assert asks is not None and tells is not None
    with looking:

        def seen() -> str:
            asks.write("\n")
            asks.flush()
            return tells.readline()

        assert seen() == "[] []\n"
        service = recipes.sshd(server, 2222)
        assert seen() == "[2222] []\n"
        session = admin.popen(recipes.ssh_argv(service, server.address, "echo here; exec sleep 600"), log="session")
        wait_until(lambda: "here" in session.text(), what="a session")
        assert seen() == "[2222] [2222]\n"
        moved = recipes.sshd(server, 2200)
        assert seen() == "[2200, 2222] [2222]\n"
        moved.program.stop()
        service.program.stop()
        assert seen() == "[] [2222]\n"
        session.stop()
        wait_until(lambda: seen() == "[] []\n", what="the end of the session seen")


@pytest.mark.root
def test_units_are_asked_when_listening_sockets_changed_or_a_minute_is_over(lab: Lab) -> None:
    lab.host("quiet").inside(_units_are_asked)


def _units_are_asked() -> None:
    asked: list[float] = []
    now = 100.0

    def units() -> frozenset[int]:
        asked.append(now)
        return frozenset({22})

    look = login.LoginLook(lambda: now, units)
    assert look.look(OWN).servers == {22}
    look.look(OWN)
    assert asked == [100.0]
    with socket.create_server(("127.0.0.1", 0)):
        now = 101.0
        look.look(OWN)
        assert asked == [100.0, 101.0]
        now = 161.0
        look.look(OWN)
    assert asked == [100.0, 101.0, 161.0]
