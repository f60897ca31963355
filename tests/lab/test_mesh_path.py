"""The way of a legacy host through the mesh: in, by name, seen, refused, out; over each family of addresses."""

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from meshagent.lab import recipes, wait_until
from tests.lab.mesh import Mesh, open_mesh, took_at_best

pytestmark = pytest.mark.root

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"""


@pytest.fixture(params=[pytest.param((4,), marks=pytest.mark.long), (6,), (4, 6)], ids=["ipv4", "ipv6", "dual"])
def mesh(request: pytest.FixtureRequest, envoy: Path) -> Iterator[Mesh]:
    with open_mesh(request.param) as opened:
        yield opened


def reaches(mesh: Mesh, port: int = 6379) -> bool:
    cache, outsider = mesh.members["cache"], mesh.lab.hosts["outsider"]
    try:
        outsider.connect(cache.address, port, timeout=2).close()
    except OSError:
        return False
    return True


def test_a_host_joins_is_reached_by_name_sees_its_callers_and_leaves_without_a_trace(mesh: Mesh) -> None:
    web, cache, outsider = (mesh.lab.host(name) for name in ("web", "cache", "outsider"))
    recipes.redis(cache)
    recipes.mariadb(cache)
    recipes.nginx(web)
    for host in (web, cache):
        mesh.before[host.name] = host.snapshot()
    mesh.join_all((web, [("web", 80, "http")]), (cache, [("cache", 6379, "redis"), ("db", 3306, "mysql")]))

    # By name, to a server that waits for its client and to one that speaks first; both see who calls.
    assert mesh.redis(web, "cache") == "PONG"
    assert mesh.redis(web, "cache", "client", "list").count(f"addr={bracketed(web.address)}:") == 1
    query = ["mariadb", "--skip-ssl", "-h", "db.default.mesh.internal", "-uapp", "-papp", "-Ne", "select user()"]
    assert f"app@{web.address}" in web.run(query).stdout
    assert took_at_best(lambda: web.run(query)) < 1.5, "a server that speaks first must not wait"

    # Over HTTP the application gets the caller's identity and address.
    said = cache.run(["curl", "-sS", "--max-time", "5", "http://web.default.mesh.internal/who"]).stdout
    address, _, identity = said.strip().partition(" ")
    assert address == cache.address
    assert "URI=spiffe://mesh.internal/ns/default/sa/cache" in identity

    # Every family of the lab has a virtual address, and only those.
    found = {ip_address(text).version for text in mesh.resolve(web, "cache.default.mesh.internal")}
    assert found == set(mesh.lab.families)
    assert mesh.resolve(web, "outsider.lab.test"), "names outside the mesh must resolve"

    # Plain text is counted with its address, refused by posture, allowed again, refused by the mesh's policy.
    assert reaches(mesh)
    callers = wait_until(lambda: mesh.status(cache)["plaintext_callers"])
    assert [(c["service"], c["address"], c["count"]) for c in callers] == [("cache", outsider.address, 1)]
    cache.meshagent("posture", "strict", "--confirm", "0")
    wait_until(lambda: not reaches(mesh), 3)
    assert took_at_best(lambda: reaches(mesh)) < 1, "a refusal is at once"
    assert mesh.redis(web, "cache") == "PONG"
    cache.meshagent("posture", "permissive", "--confirm", "0")
    wait_until(lambda: reaches(mesh), 3)
    mesh.hub.meshagent("hub", "apply", "-f", "-", input=STRICT)
    wait_until(lambda: not reaches(mesh), 3)
    assert mesh.redis(web, "cache") == "PONG"
    assert mesh.conditions(web) == mesh.conditions(cache) == []

    for host in (web, cache):
        mesh.leave(host)
        wait_until(lambda host=host: not mesh.left_over(host), 3, "as before")  # type: ignore[misc]
    assert not any(row["connected"] for row in mesh.hub.meshagent_json("hub", "hosts")["hosts"])


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
