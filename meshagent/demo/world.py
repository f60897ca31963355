"""The stage: six hosts, legacy services on four of them, nothing of a mesh yet."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from meshagent.demo.narrator import Narrator
from meshagent.lab import Host, Lab, Program, recipes, wait_until
from meshagent.lab.recipes import Service
from meshagent.lab.snapshot import Snapshot
from meshagent.machine import process

if TYPE_CHECKING:
    from meshagent.demo.held import Held

#: A payload that nobody encrypts by accident: what the captures look for.
PAYLOAD = "card=4000-0012-3456-7899"

#: What the old database holds, and nobody else.
ORDER = "order 4711, 3 anvils, ACME"
_ORDERS = f"CREATE TABLE app.orders (text VARCHAR(80));\nINSERT INTO app.orders VALUES ('{ORDER}');"


@dataclass
class World:
    """Hosts and what the steps hand on to each other."""

    lab: Lab
    tell: Narrator
    hub: Host
    web: Host
    cache: Host
    db: Host
    olddb: Host
    outsider: Host
    databases: dict[str, Service] = field(default_factory=dict)
    before: dict[str, Snapshot] = field(default_factory=dict)
    agents: dict[str, Program] = field(default_factory=dict)
    control_plane: Program | None = None
    connections: "Held | None" = None
    plain_packets: int = 0
    interrupted: Callable[[], None] = field(default=lambda: None)

    @property
    def members(self) -> tuple[Host, ...]:
        """Hosts that join the mesh."""
        return (self.web, self.cache, self.db)

    @property
    def held(self) -> "Held":
        """The connections that are older than the mesh."""
        assert self.connections is not None, "they are opened in the prologue"
        return self.connections

    def run(self, host: Host, *argv: str, check: bool = True, timeout: float = 20.0) -> str:
        """A command that is part of the story: told, run, its output returned without the last newline."""
        self.interrupted()
        self.tell.command(host.name, process.show(argv))
        return host.run(list(argv), check=check, timeout=timeout).stdout.strip()

    def meshagent(self, host: Host, *args: str, **more: Any) -> str:
        """``meshagent …`` on a host, told and run."""
        self.interrupted()
        shown = ["<token>" if word.startswith("ma1.") else word for word in args]
        self.tell.command(host.name, "meshagent " + " ".join(shown))
        return host.meshagent(*args, **more).stdout

    def start_agent(self, host: Host) -> None:
        """``meshagent run``, supervised by the lab as systemd does elsewhere."""
        self.tell.command(host.name, "meshagent run &")
        self.agents[host.name] = host.start_meshagent("run", log="agent")

    def kill_agent(self, host: Host) -> None:
        """kill -9; what it started outlives it."""
        agent = self.agents[host.name]
        self.tell.command(host.name, f"kill -9 {agent.pid}  # the agent")
        agent.kill()

    def start_hub(self) -> None:
        """The control plane; returns when it answers."""
        self.tell.command(self.hub.name, "meshagent hub run &")
        program = self.hub.start_meshagent("hub", "run", log="hub")
        self.control_plane = program
        self.wait("the hub", lambda: program.alive and self.hub.meshagent_json("hub", "hosts"))

    def connected(self) -> list[str]:
        """Names of the hosts that the hub sees connected, sorted."""
        return sorted(row["name"] for row in self.hub.meshagent_json("hub", "hosts")["hosts"] if row["connected"])

    def wait(self, what: str, condition: Callable[[], object], timeout: float = 15.0) -> None:
        """Wait for a condition, with its name in the error."""
        self.interrupted()
        with self.tell.waiting(what):
            wait_until(condition, timeout=timeout, what=what)


def build(lab: Lab, tell: Narrator, interrupted: Callable[[], None] = lambda: None) -> World:
    """Make the hosts and start the legacy services: nginx, Redis and MariaDB as their packages bring them."""
    names = ("hub", "web", "cache", "db", "olddb", "outsider")
    hosts = {name: lab.host(name) for name in names}
    world = World(lab, tell, interrupted=interrupted, **hosts)  # type: ignore[arg-type]
    with tell.waiting("nginx, Redis and two MariaDB starting"):
        recipes.redis(world.cache)
        recipes.nginx(world.web)
        world.databases["db"] = recipes.mariadb(world.db)
        world.databases["olddb"] = recipes.mariadb(world.olddb, sql=_ORDERS)
    return world
