"""Nothing that runs breaks: real connections, from before a host joins until after it left, and through the mesh.

``host`` joins, changes and leaves; ``peer`` never hears of a mesh. Connections of real programs run in both directions,
some busy, some idle: an idle one speaks first after one certain step, because for a kernel that didn't track it before,
its next packet looks like the beginning of a new connection.
"""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshagent.lab import Host, Program, wait_until
from tests.lab.connections import IdleRedis, Open, Servers, all_going_on, go_on, serve
from tests.lab.mesh import Mesh, open_mesh

#: Real programs by the dozen: 15 s of a quiet machine, and nothing that may hang for long.
pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

#: Any rule that asks for a connection's state makes the kernel track all of them.
WARM = "add table inet warm; add chain inet warm in { type filter hook input priority 0; }; \
add rule inet warm in ct state established counter accept"

CLAIM = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: moved, namespace: default}}
spec:
  hosts: [moved.default.mesh.internal]
  addresses: [{address}]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 6379, name: redis, protocol: REDIS}}]
  endpoints: [{{address: {target}, serviceAccount: cache}}]
"""


@dataclass
class Story:
    """``steps``: what happens to ``host``, one after the other; after each, everything must go on."""

    mesh: Mesh
    host: Host
    peer: Host

    def posture(self, wanted: str) -> None:
        self.host.meshagent("posture", wanted, "--confirm", "0")
        active = wanted != "observe"
        wait_until(
            lambda: (s := self.mesh.status(self.host))["posture"] == wanted and s["capture"]["active"] == active, 10
        )

    def join(self) -> None:
        self.mesh.join(self.host, ("cache", 6379, "redis"))
        self.mesh.settle()

    def add_service(self) -> None:
        self.host.meshagent("service", "add", "bulk", "--port", "9000", "--protocol", "tcp")
        wait_until(lambda: 9000 in self.mesh.status(self.host)["capture"]["ports"], 10)

    def claim_the_peer(self) -> None:
        """The very address the open connections go to belongs to the mesh from now on."""
        for number, (address, target) in enumerate(zip(self.peer.addresses, self.host.addresses, strict=True)):
            entry = CLAIM.format(address=address, target=target).replace("moved", f"moved{number}")
            self.mesh.hub.meshagent("hub", "apply", "-f", "-", input=entry)
        for address in self.peer.addresses:
            wait_until(lambda address=address: address in self.rules(), 10, f"{address} is captured")  # type: ignore[misc]

    def rules(self) -> str:
        return self.host.run(["nft", "list", "table", "inet", "meshagent"]).stdout

    def end_agent(self, number: signal.Signals) -> Callable[[], None]:
        def end_and_start() -> None:
            self.mesh.agents[self.host.name].stop(15, number)
            self.mesh.start(self.host)
            wait_until(lambda: self.mesh.status(self.host)["capture"]["in_sync"], 15)

        return end_and_start

    def leave(self) -> None:
        self.mesh.leave(self.host)

    def steps(self) -> list[tuple[str, Callable[[], None]]]:
        return [
            ("joins", self.join),
            ("the peer's address is claimed", self.claim_the_peer),
            ("strict", lambda: self.posture("strict")),
            ("outbound", lambda: self.posture("outbound")),
            ("permissive", lambda: self.posture("permissive")),
            ("a service is added", self.add_service),
            ("its agent is killed", self.end_agent(signal.SIGKILL)),
            ("its agent is stopped", self.end_agent(signal.SIGTERM)),
            ("observe", lambda: self.posture("observe")),
            ("permissive again", lambda: self.posture("permissive")),
            ("leaves", self.leave),
        ]


@contextmanager
def begin(envoy: Path, families: tuple[int, ...], warm: bool) -> Iterator[Story]:
    with open_mesh(families) as mesh:
        story = Story(mesh, mesh.lab.host("cache"), mesh.lab.host("peer"))
        if warm:
            story.host.run(["nft", WARM])
        yield story


def directions(one: Servers, other: Servers) -> Iterator[tuple[Host, Servers, str]]:
    """(client, server, its address), for each direction and family."""
    for client, server in ((one.host, other), (other.host, one)):
        for address in server.host.addresses:
            yield client, server, address


@contextmanager
def noted(text: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(text)
        raise


def tell(story: Story, servers: tuple[Servers, Servers]) -> None:
    steps = story.steps()
    idle: dict[str, list[IdleRedis]] = {name: [] for name, _ in steps}
    with ExitStack() as stack:
        going_on: list[Open] = stack.enter_context(all_going_on([]))
        for client, server, address in directions(*servers):
            going_on += server.opened(client, address)
            for waiting in idle.values():
                waiting.append(IdleRedis(client, address))
        for name, step in steps:
            step()
            with noted(f"after: {name}"):
                go_on(going_on)
                for connection in idle[name]:
                    connection.is_who_it_was()
        for waiting in idle.values():
            for connection in waiting:
                connection.finish()
    assert "meshagent" not in story.host.run(["nft", "list", "ruleset"]).stdout


def test_real_connections_live_from_before_a_host_joins_until_after_it_left(envoy: Path) -> None:
    with begin(envoy, (4, 6), warm=False) as story:
        tell(story, (serve(story.host), serve(story.peer)))


@pytest.mark.long
@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)], ids=["ipv4", "ipv6", "dual"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_they_live_on_every_kind_of_host(envoy: Path, families: tuple[int, ...], warm: bool) -> None:
    with begin(envoy, families, warm) as story:
        tell(story, (serve(story.host), serve(story.peer)))


# --- through the proxy


@contextmanager
def through_the_mesh(envoy: Path, families: tuple[int, ...]) -> Iterator[tuple[Mesh, Servers]]:
    """``web`` and ``shop`` are clients, ``cache`` serves; all in the mesh."""
    with open_mesh(families) as mesh:
        web, shop, cache = (mesh.lab.host(name) for name in ("web", "shop", "cache"))
        servers = serve(cache)
        mesh.join_all((web, []), (shop, []), (cache, [("cache", 6379, "redis"), ("bulk", 9000, "tcp")]))
        yield mesh, servers


def opened(mesh: Mesh, client: Host, servers: Servers) -> list[Open]:
    """Through the proxy, over each family of virtual addresses."""
    found: list[Open] = []
    for redis, bulk in zip(
        *(sorted(mesh.resolve(client, f"{name}.default.mesh.internal")) for name in ("cache", "bulk")), strict=True
    ):
        found += servers.through_the_mesh(client, redis, bulk)
    return found


def restart(mesh: Mesh, number: signal.Signals) -> None:
    """End the agents of all hosts and start them again."""
    for name, host in mesh.members.items():
        mesh.agents[name].stop(15, number)
        mesh.start(host)
    mesh.settle()


def leaving(mesh: Mesh, host: Host) -> Program:
    """``leave --wait`` under way: nothing new is captured there any more."""
    words = ("leave", "--wait", "--purge", "--accept", "mesh-in-use", "-o", "json")
    program = host.popen(host.meshagent_argv(*words), log="leave")

    def captures_nothing_new() -> bool:
        done = host.run(["nft", "list", "table", "inet", "meshagent"], check=False)
        return "to_proxy" not in done.stdout

    wait_until(captures_nothing_new, 15, f"{host.name} captures nothing new")
    return program


def flush_and_heal(host: Host) -> None:
    """As Debian's nftables.service does on every reload; our table is the guard's own, the anchor is put back."""
    for _ in range(3):
        host.run(["nft", "flush", "ruleset"])
        wait_until(lambda: "meshagent_anchor" in host.run(["nft", "list", "tables"]).stdout, 5)


def posture(mesh: Mesh, host: Host, wanted: str) -> None:
    host.meshagent("posture", wanted, "--confirm", "0")
    wait_until(lambda: mesh.status(host)["posture"] == wanted, 10)


def test_connections_through_the_proxy_live_on_and_leave_waits_for_their_end(envoy: Path) -> None:
    with through_the_mesh(envoy, (4, 6)) as (mesh, servers):
        live_on_and_leave(mesh, servers)


@pytest.mark.long
@pytest.mark.parametrize("families", [(4,), (6,)], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_so_they_do_on_every_kind_of_host(envoy: Path, families: tuple[int, ...], warm: bool) -> None:
    with through_the_mesh(envoy, families) as (mesh, servers):
        for host in mesh.members.values() if warm else ():
            host.run(["nft", WARM])
        live_on_and_leave(mesh, servers)


def live_on_and_leave(mesh: Mesh, servers: Servers) -> None:
    web, shop, cache = (mesh.members[name] for name in ("web", "shop", "cache"))
    with all_going_on(opened(mesh, shop, servers)) as of_shop:
        with all_going_on(opened(mesh, web, servers)) as of_web:
            every = [*of_shop, *of_web]
            for name, step in (
                ("all rules are flushed", lambda: flush_and_heal(web)),
                ("strict", lambda: posture(mesh, cache, "strict")),
                ("outbound", lambda: posture(mesh, web, "outbound")),
                ("a service goes", lambda: cache.meshagent("service", "remove", "bulk")),
                ("and comes", lambda: cache.meshagent("service", "add", "bulk", "--port", "9000", "--protocol", "tcp")),
                ("agents killed", lambda: restart(mesh, signal.SIGKILL)),
                ("agents stopped", lambda: restart(mesh, signal.SIGTERM)),
                ("observe", lambda: posture(mesh, web, "observe")),
            ):
                step()
                with noted(f"after: {name}"):
                    go_on(every)
            gone = leaving(mesh, web)
            go_on(every)
            assert gone.alive
        assert gone.wait(20) == 0, gone.text()
        assert json.loads(gone.text()[gone.text().index("{") :])["closed"] == []
        del mesh.members["web"]
        gone = leaving(mesh, cache)
        go_on(of_shop)
        assert gone.alive, "the server waits for its clients' connections"
    assert gone.wait(20) == 0, gone.text()
    del mesh.members["cache"]
    assert "meshagent" not in cache.run(["nft", "list", "ruleset"]).stdout
