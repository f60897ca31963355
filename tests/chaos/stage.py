"""Six hosts and a hub under load: two whose users ask all the time, four that serve."""

import contextlib
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from meshagent.lab import Host, recipes
from tests.lab.mesh import Mesh, open_mesh, wait_hub
from tests.lab.user import BULK, Tally, User

#: Enough for everything an agent keeps, little enough to be filled in a moment.
STATE_SIZE = "8m"


@dataclass
class Stage:
    """``users`` by host name; ``dice`` decides whom a fault hits."""

    mesh: Mesh
    dice: random.Random
    users: dict[str, User]

    def host(self, *names: str) -> Host:
        """One of these hosts, or of all."""
        return self.mesh.members[self.dice.choice(names or sorted(self.mesh.members))]

    def settle(self) -> None:
        """Until every host is as it should be and every user is served."""
        self.mesh.settle(60)
        now = time.monotonic()
        for user in self.users.values():
            user.goes_on(now, timeout=30)

    def met(self, since: float) -> dict[str, Tally]:
        """Flow -> what all users met since then."""
        found: dict[str, Tally] = {}
        for name, user in self.users.items():
            found |= {f"{name} {kind}": tally for kind, tally in user.met(since).items()}
        return found

    def restart_hub(self, env: Mapping[str, str] | None = None) -> None:
        """The same hub again, on the same data."""
        self.mesh.hub_program = self.mesh.hub.start_meshagent("hub", "run", log="hub", env=env)
        wait_hub(self.mesh)


@contextlib.contextmanager
def open_stage(seed: str) -> Iterator[Stage]:
    """Everything up and every user served."""
    with open_mesh((4,)) as mesh:
        web, app, cache, pages, db, queue = (
            mesh.lab.host(name) for name in ("web", "app", "cache", "pages", "db", "queue")
        )
        for host in (web, app, cache, pages, db, queue):
            _small_disk(host)
        for host in (cache, db, queue):
            recipes.redis(host)
            host.run(["redis-cli", "setrange", "bulk", str(BULK - 1), "x"])
        recipes.nginx(pages, 8080)
        mesh.join_all(
            (web, []),
            (app, []),
            (cache, [("cache", 6379, "redis")]),
            (pages, [("pages", 8080, "http")]),
            (db, [("db", 6379, "redis")]),
            (queue, [("queue", 6379, "tcp")]),
        )
        with contextlib.ExitStack() as stack:
            users = {
                "web": _user(mesh, web, keep="pages", close="pages", redis="cache", bulk="cache"),
                "app": _user(mesh, app, keep="pages", redis="db", bulk="queue"),
            }
            stage = Stage(mesh, random.Random(seed), {n: stack.enter_context(u) for n, u in users.items()})
            stage.settle()
            yield stage


def _small_disk(host: Host) -> None:
    state = host.root / "var/lib"
    state.mkdir(parents=True)
    host.run(["mount", "-t", "tmpfs", "-o", f"size={STATE_SIZE},mode=755", "tmpfs", str(state)])


def _user(mesh: Mesh, host: Host, **wanted: str) -> User:
    ports = {"pages": 8080}
    targets = {
        kind: (mesh.resolve(host, f"{service}.default.mesh.internal")[0], ports.get(service, 6379))
        for kind, service in wanted.items()
    }
    return User(host, targets)
