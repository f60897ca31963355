"""Agent, guard and hub under a supervisor that listens as systemd does: a real notify socket for each."""

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from meshagent.guard.client import command
from meshagent.lab import Host, Lab, wait_until

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("mesh-notify")]


@dataclass
class Systemd:
    """The socket that a service is told of, and everything that came."""

    listening: socket.socket
    path: Path
    lines: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": "400000"}

    def heard(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.lines += self.listening.recv(4096).decode().splitlines()
        return self.lines

    def status(self) -> str:
        """The newest status line."""
        return next((line for line in reversed(self.heard()) if line.startswith("STATUS=")), "")

    def beats(self) -> int:
        return self.heard().count("WATCHDOG=1")


@contextlib.contextmanager
def systemd(host: Host, name: str) -> Iterator[Systemd]:
    path = host.private / f"{name}.notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.setblocking(False)
        yield Systemd(listening, path)


def test_hub_guard_and_agent_tell_systemd_how_they_are(envoy: Path) -> None:
    with (
        Lab(families=(4,)) as lab,
        systemd(lab.host("hub"), "hub") as of_hub,
        systemd(lab.host("web"), "guard") as of_guard,
        systemd(lab.hosts["web"], "agent") as of_agent,
    ):
        hub, web = lab.hosts["hub"], lab.hosts["web"]
        hub_program = hub.start_meshagent("hub", "run", log="hub", env=of_hub.environment)
        wait_until(lambda: "READY=1" in of_hub.heard(), 20, "the hub ready")
        assert hub.meshagent_json("hub", "status")["ready"]  # whoever hears READY can ask
        made = hub.meshagent_json("hub", "token", "create", "--service-account", "web")
        web.meshagent("enroll", f"{hub.address}:15012", made["token"], "--no-start")
        guard = web.popen(command(web.root), log="guard", env=of_guard.environment)
        wait_until(lambda: "READY=1" in of_guard.heard(), 10, "the guard ready")
        agent = web.start_meshagent("run", log="agent", env=of_agent.environment)
        wait_until(lambda: "READY=1" in of_agent.heard(), 20, "the agent ready")
        wait_until(lambda: "hub connected" in of_agent.status(), 20, "the agent's status")
        assert of_agent.status().startswith("STATUS=serving 0 services, 0 peers")
        wait_until(lambda: "1 of 1 hosts connected, 0 services" in of_hub.status(), 10, "the hub's status")
        wait_until(lambda: "rules are in place" in of_guard.status(), 20, "the guard's status")
        for each in (of_hub, of_guard, of_agent):
            before = each.beats()
            wait_until(lambda each=each, before=before: each.beats() > before + 2, 10, "the watchdog fed")  # type: ignore[misc]
        # a watchdog that isn't fed is the point of it: a stopped process feeds nothing
        agent.send_signal(19)
        of_agent.heard()
        before = of_agent.beats()
        wait_until(lambda: of_hub.beats() > 20, 20, "time to pass")
        assert of_agent.beats() == before
        agent.send_signal(18)
        for program, told in ((agent, of_agent), (hub_program, of_hub), (guard, of_guard)):
            told.heard()  # a socket holds ten messages: there is room for the last one
            program.stop()
            assert "STOPPING=1" in told.heard()
