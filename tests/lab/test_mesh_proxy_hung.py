"""Envoy hangs while nobody is there to help: the agent is stopped too. The guard alone keeps the host well or shut."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.guard.client import GuardClient
from meshagent.lab import recipes, wait_until
from tests.lab.mesh import Mesh, open_mesh

pytestmark = pytest.mark.root

CLAIM = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: old, namespace: default}}
spec:
  hosts: [old.default.mesh.internal]
  addresses: [{address}]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 6379, name: redis, protocol: REDIS}}]
  endpoints: [{{address: {target}, serviceAccount: cache}}]
"""


@pytest.fixture
def mesh(envoy: Path) -> Iterator[Mesh]:
    """``web`` dials the address of ``old``, a machine outside the mesh; the mesh has claimed it for ``cache``."""
    with open_mesh((4,)) as opened:
        web, cache, old = (opened.lab.host(name) for name in ("web", "cache", "old"))
        recipes.redis(cache)
        recipes.redis(old)
        opened.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        opened.hub.meshagent("hub", "apply", "-f", "-", input=CLAIM.format(address=old.address, target=cache.address))
        wait_until(lambda: old.address in web.run(["nft", "list", "table", "inet", "meshagent"]).stdout, 10)
        yield opened


def hang(mesh: Mesh) -> int:
    """Stop agent and Envoy of ``web`` where they stand; the pid of Envoy."""
    envoy = int(mesh.status(mesh.members["web"])["proxy"]["pid"])
    mesh.agents["web"].send_signal(signal.SIGSTOP)
    os.kill(envoy, signal.SIGSTOP)
    return envoy


def reaches(mesh: Mesh, address: str) -> str:
    """``pong``, or what went wrong."""
    try:
        with mesh.members["web"].connect(address, 6379, timeout=1) as client:
            client.sendall(b"PING\r\n")
            return "pong" if client.recv(7) == b"+PONG\r\n" else "nothing"
    except OSError as error:
        return type(error).__name__


def test_with_policy_open_claimed_addresses_go_direct_and_virtual_ones_are_refused(mesh: Mesh) -> None:
    web, old = mesh.members["web"], mesh.lab.hosts["old"]
    virtual = mesh.resolve(web, "cache.default.mesh.internal")[0]
    envoy, stopped = hang(mesh), time.monotonic()
    try:
        with web.capture(f"dst host {old.address} and tcp dst port 6379") as seen:
            wait_until(lambda: reaches(mesh, old.address) == "pong", 10, "the way around")
            taken = time.monotonic() - stopped
        assert seen.packets(), "it went there directly"
        assert taken < 4, "2 s, one attempt of 1 s that began before, and what a loaded machine needs"
        assert reaches(mesh, virtual) == "ConnectionRefusedError"
    finally:
        os.kill(envoy, signal.SIGCONT)
    wait_until(lambda: reaches(mesh, virtual) == "pong", 10, "captured again, with the agent still stopped")
    mesh.agents["web"].send_signal(signal.SIGCONT)
    wait_until(lambda: mesh.status(web)["capture"]["bypassed_since"] is None, 10)
    assert mesh.status(web)["capture"]["around_proxy"] >= 1
    assert mesh.status(web)["proxy"]["hangs"] == 1


def test_with_policy_closed_they_are_refused_and_not_a_packet_leaves(mesh: Mesh) -> None:
    web, old = mesh.members["web"], mesh.lab.hosts["old"]
    web.meshagent("posture", "strict", "--confirm", "0")
    wait_until(lambda: mesh.status(web)["posture"] == "strict" and mesh.status(web)["capture"]["in_sync"], 10)
    assert reaches(mesh, old.address) == "pong"
    with web.capture(f"dst host {old.address} and tcp dst port 6379") as seen:
        envoy = hang(mesh)
        wait_until(lambda: reaches(mesh, old.address) == "ConnectionRefusedError", 10, "the refusal")
        for _ in range(20):
            assert reaches(mesh, old.address) == "ConnectionRefusedError"
        os.kill(envoy, signal.SIGKILL)
        assert reaches(mesh, old.address) == "ConnectionRefusedError"
    assert seen.packets() == []
    mesh.agents["web"].send_signal(signal.SIGCONT)
    wait_until(lambda: reaches(mesh, old.address) == "pong", 15, "a new proxy serves")


def test_from_the_first_rule_on_the_guard_watches_the_proxy(envoy: Path) -> None:
    """An agent that dies or hangs right after it has begun to capture must not leave a proxy that nobody watches."""
    with open_mesh((4,)) as mesh:
        web = mesh.lab.host("web")
        web.meshagent(*mesh.token("web"))
        mesh.members["web"], mesh.offers["web"] = web, ()
        mesh.start(web)
        with contextlib.closing(GuardClient(web.root / "run/meshagent/guard.sock")) as guard:
            first = wait_until(lambda: (state := guard.state())["installed"] and state, 20, "rules", 0.002)
        assert "proxy" in first["watches"]
        mesh.settle()
