"""Services come, go, fall ill and move, and the rest of the mesh follows within seconds."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import recipes, wait_until
from meshagent.lab.waiting import patience
from tests.lab.mesh import Mesh, open_mesh, took

pytestmark = pytest.mark.root


IPV6_FIREWALL = """
nft add table ip6 theirs
nft add chain ip6 theirs in '{ type filter hook input priority 0; policy accept; }'
nft add rule ip6 theirs in tcp dport 15008 drop
"""


@pytest.fixture
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_mesh((4,)) as opened:
        yield opened


def test_services_are_added_removed_and_stopped_while_everything_runs(mesh: Mesh) -> None:
    web, cache = mesh.lab.host("web"), mesh.lab.host("cache")
    first = recipes.redis(cache)
    recipes.redis(cache, 6380, bind="127.0.0.1")
    mesh.join_all((web, []), (cache, [("cache", 6379, "redis")]))

    # A firewall of its own that keeps peers out, though only those that nobody has here.
    cache.run(["sh", "-ec", IPV6_FIREWALL])

    # A second service of the same host, on loopback only.
    cache.meshagent("service", "add", "spare", "--port", "6379", "--target-port", "6380", "--protocol", "redis")
    assert took(lambda: wait_until(lambda: mesh.redis(web, "spare") == "PONG", 8)) < 5 * patience()
    assert mesh.redis(web, "cache") == "PONG"
    listed = {row["name"]: row["healthy"] for row in cache.meshagent_json("service", "list")["services"]}
    assert listed == {"cache": True, "spare": True}

    # It goes again: the name with it.
    cache.meshagent("service", "remove", "spare")
    assert took(lambda: wait_until(lambda: not mesh.resolve(web, "spare.default.mesh.internal"), 8)) < 5 * patience()

    # The firewall is told, with the line that lets peers in, and goes by itself.
    wait_until(lambda: "firewall-blocks" in mesh.conditions(cache), 60, "the condition", 0.1)
    assert "let peers in with: nft insert rule ip6 theirs" in cache.meshagent("status").stdout
    cache.run(["nft", "delete", "table", "ip6", "theirs"])

    # The process stops: out of the endpoints; it comes back: in again.
    first.program.kill()
    wait_until(lambda: mesh.endpoints(web, "cache") in ({}, {"cache": False}), 18)
    wait_until(lambda: mesh.conditions(cache) == ["service-unhealthy"], 30)
    assert not mesh.status(cache)["services"][0]["healthy"]
    first.directory.rename(first.directory.with_name("old"))
    recipes.redis(cache)
    wait_until(lambda: mesh.redis(web, "cache") == "PONG", 8)
    wait_until(lambda: mesh.conditions(cache) == [], 5)


@pytest.mark.long  # the short form, with processes that are quickly up and down, is in test_data_path.py
def test_of_two_redis_hosts_the_standby_takes_over_and_gives_back(mesh: Mesh) -> None:
    web, one, two = (mesh.lab.host(name) for name in ("web", "one", "two"))
    service = recipes.redis(one)
    recipes.redis(two)
    one.run(["redis-cli", "set", "who", "one"])
    two.run(["redis-cli", "set", "who", "two"])
    mesh.join(web)
    for host, priority in ((one, 0), (two, 1)):
        host.meshagent(*mesh.token("cache"))
        directory = host.root / "etc/meshagent/services.d"
        directory.mkdir(parents=True, exist_ok=True)
        declared = {"name": "cache", "port": 6379, "protocol": "redis", "priority": priority}
        declared["check"] = {"tcp": True, "interval": "1s"}  # type: ignore[assignment]
        (directory / "cache.yaml").write_text(json.dumps(declared))
        mesh.members[host.name], mesh.offers[host.name] = host, (("cache", 6379, "redis"),)
        mesh.start(host)
    mesh.settle()
    wait_until(lambda: len(mesh.endpoints(web, "cache")) == 2, 5)
    assert {mesh.redis(web, "cache", "get", "who") for _ in range(6)} == {"one"}
    service.program.kill()
    assert took(lambda: wait_until(lambda: mesh.redis(web, "cache", "get", "who") == "two", 10)) < 6 * patience()
    service.directory.rename(service.directory.with_name("old"))
    recipes.redis(one)
    one.run(["redis-cli", "set", "who", "one"])
    wait_until(lambda: mesh.redis(web, "cache", "get", "who") == "one", 15)


def test_a_host_that_gets_another_address_is_reached_there(mesh: Mesh) -> None:
    web, cache = mesh.lab.host("web"), mesh.lab.host("cache")
    recipes.redis(cache)
    mesh.join_all((web, []), (cache, [("cache", 6379, "redis")]))
    old = cache.address
    new = ".".join([*old.split(".")[:3], "200"])
    cache.run(["ip", "addr", "del", f"{old}/16", "dev", "eth0"])
    cache.run(["ip", "addr", "add", f"{new}/16", "dev", "eth0"])
    cache.run(["ip", "route", "replace", "default", "via", mesh.lab.gateway(cache)])

    def endpoint() -> str:
        rows = {row["host"]: row["endpoints"] for row in mesh.peers(web)}
        return str(rows["cache.default.mesh.internal"][0]["address"])

    assert took(lambda: wait_until(lambda: endpoint() == new, 15)) < 4 * patience()
    wait_until(lambda: mesh.redis(web, "cache") == "PONG", 5)
    wait_until(lambda: {h["name"]: h["address"] for h in hosts(mesh)}["cache"] == new, 10)


def hosts(mesh: Mesh) -> list[dict[str, str]]:
    found: list[dict[str, str]] = mesh.hub.meshagent_json("hub", "hosts")["hosts"]
    return found
