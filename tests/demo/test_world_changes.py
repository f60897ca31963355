"""What clients notice when a service restarts, an address is claimed, a host stops letting anybody in."""

import time
from collections.abc import Callable

import pytest

from meshagent.demo.wire import CACHE
from meshagent.demo.world import World
from meshagent.lab import Host, recipes, wait_until
from meshagent.lab.waiting import patience

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

ENTRY = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: claim, namespace: default}}
spec:
  hosts: [claimed.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  addresses: ["{address}"]
  ports: [{{number: 6379, name: redis, protocol: REDIS}}]
  workloadSelector: {{labels: {{app: cache}}}}
"""


def pings(host: Host, name: str) -> Callable[[], bool]:
    """Whether Redis answers there; an address that nobody answers for counts as no after 2 s."""
    argv = ["timeout", "2", "redis-cli", "-h", name, "ping"]
    return lambda: host.run(argv, check=False, timeout=5).stdout.strip() == "PONG"


def test_a_claimed_address_works_on_every_host_until_its_entry_is_deleted(world: World) -> None:
    nobody = "10.254.254.254"
    path = world.hub.private / "claim.yaml"
    path.write_text(ENTRY.format(address=nobody))
    world.meshagent(world.hub, "hub", "apply", "-f", str(path))
    for host in (world.web, world.db):
        wait_until(pings(host, nobody), what=f"the claim on {host.name}")
        wait_until(pings(host, "claimed.example.com"), what=f"the claim's name on {host.name}")
    world.meshagent(world.hub, "hub", "delete", "ServiceEntry", "claim")
    for host in (world.web, world.db):
        wait_until(lambda h=host: not pings(h, nobody)(), what=f"the claim dropped on {host.name}")  # type: ignore[misc]
        rules = host.run(["nft", "list", "set", "inet", "meshagent", "claimed4"]).stdout
        assert nobody not in rules
    assert pings(world.web, CACHE)()


def test_a_host_that_lets_nobody_in_is_no_endpoint_and_comes_back(world: World) -> None:
    def endpoints() -> list[str]:
        rows = world.web.meshagent_json("peers")["services"]
        return [e["host"] for row in rows if row["host"] == CACHE for e in row["endpoints"]]

    assert endpoints() == ["cache"]
    world.meshagent(world.cache, "posture", "outbound", "--confirm", "0")
    wait_until(lambda: endpoints() == [], what="cache leaving the endpoints")
    world.meshagent(world.cache, "posture", "permissive", "--confirm", "0")
    wait_until(lambda: endpoints() == ["cache"], what="cache coming back")
    wait_until(pings(world.web, CACHE), what="Redis reachable again")


def test_the_only_endpoint_of_a_service_is_reachable_within_a_second_after_its_restart(world: World) -> None:
    assert world.run(world.web, "redis-cli", "-h", CACHE, "ping") == "PONG"
    (server,) = [p for p in world.lab.programs if p.argv[0] == "redis-server"]
    server.kill()
    assert not pings(world.web, CACHE)()
    wait_until(lambda: not _healthy(world), what="the agent of cache noticing", timeout=40)
    assert not pings(world.web, CACHE)()
    recipes.redis(world.cache)
    began = time.monotonic()
    wait_until(pings(world.web, CACHE), what="Redis reachable again", timeout=20)
    assert time.monotonic() - began < 1.0 * patience()


def _healthy(world: World) -> bool:
    (service,) = world.cache.meshagent_json("status", check=False)["services"]
    return bool(service["healthy"])
