"""Nobody is cut off: real sshds on strange ports, sessions that print while a host joins, changes and leaves."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshagent.lab import Host, Program, recipes, wait_until
from meshagent.lab.recipes import Service
from tests.lab.mesh import Mesh, open_mesh

pytestmark = pytest.mark.root

#: Two ``Port`` lines in one sshd, and one that a socket starts for each login (inetd, or Accept=yes).
TWICE, AGAIN, BY_SOCKET = 2022, 50022, 2422

PRINTING = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done"


@dataclass
class Logins:
    """``server`` is the machine that must not be lost, ``admin`` the one that people sit at."""

    mesh: Mesh
    server: Host
    admin: Host
    service: Service

    def ssh(self, port: int, command: str) -> list[str]:
        service = Service(self.service.program, port, self.service.directory)
        return recipes.ssh_argv(service, self.server.address, command)

    def typed(self, port: int, *words: str, check: bool = True) -> tuple[int, str, str]:
        """``meshagent words`` typed in a session on ``port``: exit code, stdout, stderr."""
        given = [f"{key}={value}" for key, value in self.server.environment().items()]
        line = shlex.join(["env", *given, *self.server.meshagent_argv(*words)])
        done = self.admin.run(self.ssh(port, line), timeout=60, check=check)
        return done.returncode, done.stdout, done.stderr

    def printing(self, port: int) -> "Printing":
        return Printing(self.admin.popen(self.ssh(port, PRINTING), log=f"printing-{port}"))


class Printing:
    """A session that prints fifty lines a second."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.goes_on(1)

    def lines(self) -> int:
        return self.program.text().count("\n")

    def goes_on(self, more: int = 20) -> None:
        target = self.lines() + more
        wait_until(lambda: self.lines() >= target or not self.program.alive, 30, "lines of the session")
        assert self.program.alive, self.program.tail()


@pytest.fixture(scope="module")
def logins(envoy: Path) -> Iterator[Logins]:
    with open_mesh((4,)) as mesh:
        server, admin = mesh.lab.host("server"), mesh.lab.host("admin")
        service = recipes.sshd(server, TWICE)
        config = service.directory / "sshd_config"
        service.program.stop()
        config.write_text(config.read_text().replace(f"Port {TWICE}", f"Port {TWICE}\nPort {AGAIN}"))
        server.popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(config)], log="sshd-twice")
        inetd = ["/usr/sbin/sshd", "-i", "-e", "-f", str(config)]
        server.popen(
            ["systemd-socket-activate", "--accept", "--inetd", "-l", str(BY_SOCKET), *inetd], log="sshd-socket"
        )
        made = Logins(mesh, server, admin, service)
        for port in (TWICE, AGAIN, BY_SOCKET):
            wait_until(lambda port=port: admin.run(made.ssh(port, "true")), 30, "sshd")  # type: ignore[misc]
        yield made


def test_sessions_print_on_while_a_host_joins_strictly_changes_and_leaves(logins: Logins) -> None:
    mesh, server = logins.mesh, logins.server
    sessions = [logins.printing(port) for port in (TWICE, AGAIN, BY_SOCKET)]
    for name, port in (("a", TWICE), ("b", AGAIN), ("c", BY_SOCKET)):
        server.meshagent("service", "add", name, "--port", str(port))
    _, planned, _ = logins.typed(BY_SOCKET, "plan", "--posture", "strict")
    assert f"{TWICE}" in planned and "sshd listens here" in planned
    assert "a remote session comes in here" in planned and f"your session from {logins.admin.address}" in planned
    code, said, _ = logins.typed(AGAIN, *mesh.token("server"), "--posture", "strict")
    assert code == 0 and "meshagent confirm" in said  # in a remote login the first capture waits for a confirmation
    mesh.members["server"], mesh.offers["server"] = server, []
    mesh.start(server)
    wait_until(lambda: mesh.status(server)["capture"]["active"], 40, "capture")
    spared = {row["port"] for row in mesh.status(server)["capture"]["spared"]}
    assert spared == {TWICE, AGAIN, BY_SOCKET}
    assert mesh.status(server)["capture"]["ports"] == []
    for session in sessions:
        session.goes_on()
    logins.typed(AGAIN, "confirm")
    for words in (
        ("posture", "permissive", "--confirm", "0"),
        ("capture", "off"),
        ("capture", "on", "--confirm", "0"),
        ("posture", "strict", "--confirm", "0"),
    ):
        logins.typed(TWICE, *words)
        for session in sessions:
            session.goes_on(5)
    for port in (TWICE, AGAIN, BY_SOCKET):  # who logs in now gets in, too
        assert logins.admin.run(logins.ssh(port, "echo in")).stdout == "in\n"
    logins.typed(BY_SOCKET, "leave", "--drain", "1", "--purge")
    for session in sessions:
        session.goes_on()
        session.program.stop()


def test_capturing_the_port_that_a_person_types_on_is_refused_by_name_and_taken_when_accepted(logins: Logins) -> None:
    mesh, server = logins.mesh, logins.server
    server.meshagent("service", "add", "login", "--port", str(TWICE))
    (server.root / "etc/meshagent/agent.yaml").write_text(f"capture: {{force_ports: [{TWICE}]}}\n")
    token = mesh.token("second")
    for words in (("plan",), (*token, "--name", "second"), ("plan", "-o", "json")):
        code, said, error = logins.typed(TWICE, *words, check=False)
        assert code == 5 and said == "", said
        assert "your session from" in error and str(TWICE) in error and "--accept login" in error
    assert not (server.root / "var/lib/meshagent/enrolment.json").exists()
    assert logins.typed(TWICE, "plan", "--posture", "outbound")[0] == 0
    code, said, _ = logins.typed(TWICE, "plan", "--accept", "login")
    assert code == 0 and "(accepted)" in said
    logins.typed(TWICE, *token, "--name", "second", "--accept", "login", "--posture", "outbound")
    mesh.start(server)
    wait_until(lambda: mesh.status(server)["capture"]["active"], 40, "capture")
    code, _, error = logins.typed(TWICE, "posture", "strict", check=False)
    assert code == 5 and "--accept login" in error
    assert mesh.status(server)["posture"] == "outbound"
    server.meshagent("leave", "--drain", "1", "--purge")


def test_a_session_of_another_kind_than_ssh_is_found_by_the_connection_it_came_by(logins: Logins) -> None:
    server, admin = logins.server, logins.admin
    server.meshagent("service", "add", "console", "--port", "7681")
    line = shlex.join([*server.meshagent_argv("plan", "--posture", "strict")])
    shell = server.private / "shell"
    shell.write_text(f"#!/bin/sh\nread go\n{line}\necho code $?\n")
    shell.chmod(0o755)
    server.popen(["socat", "TCP-LISTEN:7681,fork,reuseaddr", f"EXEC:{shell},stderr"], log="console")
    wait_until(lambda: server.connect(server.address, 7681).close() is None, 30, "the console")
    with admin.connect(server.address, 7681) as session:
        session.sendall(b"go\n")
        said = session.makefile().read()
    assert "code 5" in said and f"your session from {admin.address} comes in on port 7681" in said
    server.meshagent("service", "remove", "console")
