"""One mesh for all tests of the command line: a hub, a host with Redis, a host beside the mesh."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshagent.lab import Host, Lab, Program, recipes, wait_until


@dataclass
class Mesh:
    """``db`` is enrolled and runs the agent; ``late`` isn't enrolled yet."""

    lab: Lab
    hub: Host
    db: Host
    late: Host
    agent: Program

    def token(self, account: str, *options: str) -> str:
        """A fresh token."""
        made = self.hub.meshagent_json("hub", "token", "create", "--service-account", account, *options)
        return str(made["token"])

    def enrol(self, host: Host, *options: str) -> dict[str, Any]:
        """Join ``host`` under its own name; the command's answer."""
        token = self.token(host.name)
        answer: dict[str, Any] = host.meshagent_json("enroll", f"{self.hub.address}:15012", token, *options)
        return answer


@pytest.fixture(scope="session")
def mesh(envoy: Path) -> Iterator[Mesh]:
    """Tests that use it belong to the xdist group ``cli-mesh``, so that it is built once."""
    with Lab(families=(4, 6)) as lab:
        hub, db, late = (lab.host(name) for name in ("hub", "db", "late"))
        lab.resolver.add("hub.example", "A", hub.address)
        hub.start_meshagent("hub", "run")
        recipes.redis(db)
        wait_until(lambda: hub.meshagent_json("hub", "hosts"), what="the hub")
        made = Mesh(lab, hub, db, late, agent=None)  # type: ignore[arg-type]  # started below
        made.enrol(db)
        db.meshagent("service", "add", "db", "--port", "6379", "--protocol", "redis")
        made.agent = db.start_meshagent("run")
        wait_until(lambda: is_ready(db), timeout=40, what="db in the mesh")
        yield made


def is_ready(host: Host) -> bool:
    """Connected, captured, Envoy ready, every declared service announced and healthy, the mesh's names known."""
    status = host.meshagent_json("status", check=False)
    return bool(
        status
        and status["enrolled"]
        and status["control_plane"]["connected"]
        and status["capture"]["active"]
        and status["proxy"]["ready"]
        and all(service["healthy"] and service["host"] for service in status["services"])
        and host.meshagent_json("peers")["services"]
    )
