"""The checks of the demo can fail: each promise is broken on purpose, on a real mesh, and its step says so.

One mesh for all of them, in the order of the story; whatever a test breaks it mends.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from meshagent.demo import access, giveback, held, literal, wire
from meshagent.demo.narrator import DemoError, StepResult
from meshagent.demo.world import World
from meshagent.lab import Host

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


def fails(step: Callable[[World, StepResult], None], world: World) -> str:
    with pytest.raises(DemoError) as caught:
        step(world, StepResult("broken"))
    return caught.value.message


@contextmanager
def named(host: Host, name: str, address: str) -> Iterator[None]:
    """A name that leads past the mesh, as an old line in /etc/hosts does."""
    path = host.path("/etc/hosts")
    before = path.read_text()
    path.write_text(f"{before}{address} {name}\n")
    try:
        yield
    finally:
        path.write_text(before)


def test_plain_text_on_the_wire_fails_retrofit(world: World) -> None:
    with named(world.web, wire.CACHE, world.cache.address):
        assert "still readable on the wire" in fails(wire.retrofit, world)


def test_a_database_that_sees_another_address_than_the_clients_fails_names(world: World) -> None:
    relay = ["socat", "TCP-LISTEN:3306,fork,reuseaddr", f"TCP:{world.db.address}:3306"]
    program = world.outsider.popen(relay)
    try:
        world.wait("the relay", lambda: world.outsider.connect(world.outsider.address, literal.PORT))
        with named(world.web, access.DB, world.outsider.address):
            assert f"not from {world.web.address}" in fails(access.names, world)
    finally:
        program.kill()


def test_a_literal_that_answers_outside_the_mesh_fails_hard_coded_ip(world: World) -> None:
    outsider = world.outsider
    outsider.run(["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1"])  # only the outsider itself finds the address
    outsider.run(["ip", "address", "add", f"{world.olddb.address}/32", "dev", "lo"])
    with outsider.listen(literal.PORT):
        assert "a host outside the mesh can connect" in fails(literal.hard_coded_ip, world)


def test_a_connection_that_was_cut_fails_open_connection(world: World) -> None:
    victim = world.held.subscribed
    world.cache.run(["redis-cli", "client", "kill", "id", str(victim.client_id)])
    assert "subscribed is gone from Redis" in fails(held.open_connections, world)


def test_a_leftover_fails_leave(world: World) -> None:
    world.web.path("/etc/left-over.conf").write_text("x")
    assert "left-over.conf" in fails(giveback.leave, world)
