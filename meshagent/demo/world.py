"""The stage: five hosts, three legacy services, nothing of a mesh yet."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from meshagent.demo.narrator import Narrator
from meshagent.lab import Host, Lab, Program, recipes, wait_until
from meshagent.lab.snapshot import Snapshot

#: A payload that nobody encrypts by accident: what the captures look for.
PAYLOAD = "card=4000-0012-3456-7899"


@dataclass
class World:
    """Hosts and what the steps hand on to each other."""

    lab: Lab
    tell: Narrator
    hub: Host
    web: Host
    cache: Host
    db: Host
    outsider: Host
    before: dict[str, Snapshot] = field(default_factory=dict)
    agents: dict[str, Program] = field(default_factory=dict)
    plain_packets: int = 0

    @property
    def members(self) -> tuple[Host, ...]:
        """Hosts that join the mesh."""
        return (self.web, self.cache, self.db)

    def run(self, host: Host, *argv: str, check: bool = True, timeout: float = 20.0) -> str:
        """A command that is part of the story: told, run, its output returned without the last newline."""
        self.tell.command(host.name, " ".join(argv))
        return host.run(list(argv), check=check, timeout=timeout).stdout.strip()

    def meshagent(self, host: Host, *args: str, **more: Any) -> str:
        """``meshagent …`` on a host, told and run."""
        shown = ["<token>" if word.startswith("ma1.") else word for word in args]
        self.tell.command(host.name, "meshagent " + " ".join(shown))
        return host.meshagent(*args, **more).stdout

    def wait(self, what: str, condition: Callable[[], object], timeout: float = 15.0) -> None:
        """Wait for a condition, with its name in the error."""
        wait_until(condition, timeout=timeout, what=what)


def build(lab: Lab, tell: Narrator) -> World:
    """Make the hosts and start the legacy services: nginx, Redis and MariaDB as their packages bring them."""
    hub, web, cache, db, outsider = (lab.host(name) for name in ("hub", "web", "cache", "db", "outsider"))
    world = World(lab, tell, hub, web, cache, db, outsider)
    recipes.redis(world.cache)
    recipes.nginx(world.web)
    recipes.mariadb(world.db)
    return world
