"""The hub dies and comes back; the mesh goes on meanwhile and the hub has forgotten nothing."""

from pathlib import Path
from typing import Any

import pytest

from meshagent.lab import recipes, wait_until
from meshagent.lab.waiting import patience
from tests.lab.mesh import Mesh, open_mesh, wait_hub

pytestmark = pytest.mark.root


def known(mesh: Mesh) -> dict[str, Any]:
    """What must survive a restart of the hub."""
    ask = mesh.hub.meshagent_json
    return {
        "hosts": sorted((h["name"], h["spiffe_id"], h["address"]) for h in ask("hub", "hosts")["hosts"]),
        "services": sorted(
            (s["host"], s["ports"], s["addresses"], s["endpoints"]) for s in ask("hub", "services")["services"]
        ),
        "tokens": sorted((t["id"], t["uses"]) for t in ask("hub", "token", "list")["tokens"]),
    }


def connected(mesh: Mesh) -> set[str]:
    """Hosts whose announcement the hub holds."""
    return {h["name"] for h in mesh.hub.meshagent_json("hub", "hosts")["hosts"] if h["connected"]}


def test_a_killed_hub_has_forgotten_nothing_and_nobody_noticed(envoy: Path) -> None:
    with open_mesh() as mesh:
        web, cache = mesh.lab.host("web"), mesh.lab.host("cache")
        recipes.redis(cache)
        mesh.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        mesh.token("spare")
        before = known(mesh)
        with mesh.busy(web, "cache") as busy:
            mesh.hub_program.kill()
            assert mesh.redis(web, "cache") == "PONG"
            wait_until(lambda: not mesh.status(web)["control_plane"]["connected"], 5)
            mesh.hub_program = mesh.hub.start_meshagent("hub", "run", log="hub")
            wait_hub(mesh)
            assert known(mesh) == before
            mesh.settle()
            wait_until(lambda: connected(mesh) == {"web", "cache"}, 15, what="both announcements back")
            assert known(mesh) == before
            busy.goes_on()
        assert busy.slowest < 0.5 * patience()
        assert mesh.redis(web, "cache") == "PONG"
        assert mesh.conditions(web) == mesh.conditions(cache) == []
