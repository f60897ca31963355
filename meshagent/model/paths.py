"""Where everything lives below one root. Pure path arithmetic: nothing here touches the disk.

Several agents and hubs run side by side on one machine, each with a root and a network namespace of its own.
"""

from dataclasses import dataclass
from pathlib import Path

from meshagent.model.errors import UsageError

#: sun_path holds 108 bytes with the terminating zero (unix(7)); the longest name we add is 'proxy/admin-NNNN.sock'.
_SOCKET_ROOM = 107 - len("/run/meshagent-hub/proxy/admin-9999.sock")


@dataclass(frozen=True, slots=True)
class Paths:
    """The files of one agent or hub below ``root`` (``/`` on an ordinary host)."""

    root: Path = Path("/")

    def __post_init__(self) -> None:
        if len(str(self.root)) > _SOCKET_ROOM:
            raise UsageError(
                "root-too-long",
                f"--root {self.root} is too long for the sockets below it",
                hint=f"use a path of at most {_SOCKET_ROOM} characters",
            )

    # the agent
    @property
    def etc(self) -> Path:
        return self.root / "etc/meshagent"

    @property
    def config(self) -> Path:
        return self.etc / "agent.yaml"

    @property
    def services_dir(self) -> Path:
        return self.etc / "services.d"

    @property
    def state(self) -> Path:
        return self.root / "var/lib/meshagent"

    @property
    def run(self) -> Path:
        return self.root / "run/meshagent"

    @property
    def control_socket(self) -> Path:
        return self.run / "control.sock"

    @property
    def guard_socket(self) -> Path:
        return self.run / "guard.sock"

    @property
    def guard_state(self) -> Path:
        """What the guard knows, for the one that follows if it is killed."""
        return self.run / "guard.state"

    @property
    def enrolment(self) -> Path:
        """Exists exactly while this root is enrolled."""
        return self.state / "enrolment.json"

    @property
    def footprint(self) -> Path:
        """What enrolling made on this host, so that leaving can remove it."""
        return self.state / "footprint.json"

    @property
    def pending(self) -> Path:
        """The confirmation that the first capture has to wait for, left here by enroll for run."""
        return self.state / "pending.json"

    @property
    def suspended(self) -> Path:
        """Exists while a person has switched capture off."""
        return self.state / "capture-off.json"

    @property
    def heard(self) -> Path:
        """When the control plane was last heard."""
        return self.state / "heard.json"

    @property
    def guard_log(self) -> Path:
        return self.run / "guard.log"

    @property
    def guard_stopped(self) -> Path:
        """Exists while a person has ended the guard; gone with a reboot."""
        return self.run / "guard.stopped"

    @property
    def xds_socket(self) -> Path:
        return self.run / "xds.sock"

    @property
    def sds_socket(self) -> Path:
        return self.run / "sds.sock"

    @property
    def captured(self) -> Path:
        """What the last agent asked to capture; gone with a reboot, as the rules are."""
        return self.run / "captured.json"

    @property
    def proxy_dir(self) -> Path:
        return self.run / "proxy"

    # the hub
    @property
    def hub_state(self) -> Path:
        return self.root / "var/lib/meshagent-hub"

    @property
    def hub_run(self) -> Path:
        return self.root / "run/meshagent-hub"

    @property
    def hub_socket(self) -> Path:
        return self.hub_run / "admin.sock"
