"""The hub's numbers over HTTP are what ``hub status`` says."""

import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

from meshagent.hub.health import Health
from meshagent.hub.metrics import Exposed
from meshagent.hub.state import MeshState
from meshagent.runtime.clock import SystemClock
from meshagent.runtime.latest import Latest
from tests.hub.hosts import on_loop
from tests.hub.snapshot.meshes import MESH


def exposed(state: MeshState, health: Health) -> Exposed:
    return Exposed(Latest(state), health.latest, lambda: 2, lambda: 5, lambda: 1, lambda: 1_790_000_000.0, "1.2.3")


@on_loop
async def test_hosts_services_endpoints_and_conditions_are_counted() -> None:
    health = Health(SystemClock())
    health.set("store-full", "full")
    page = await exposed(replace(MESH), health).metrics()
    lines = str(page.text).splitlines()
    assert f"meshagent_hub_hosts {len(MESH.hosts)}" in lines and f"meshagent_hub_services {len(MESH.services)}" in lines
    assert 'meshagent_conditions{code="store-full",severity="error"} 1' in lines
    assert "meshagent_hub_streams 2" in lines and "meshagent_hub_connections 5" in lines
    assert "meshagent_hub_root_expiry_timestamp_seconds 1790000000" in lines


@on_loop
async def test_a_hub_whose_database_refuses_is_not_ready_and_says_why() -> None:
    health = Health(SystemClock())
    assert (await exposed(MESH, health).ready()).status == 200
    health.set("store-locked", "by x")
    page = await exposed(MESH, health).ready()
    assert (page.status, page.text) == (503, "another process holds the hub's database\n")
    health.clear("store-locked")
    health.set("metrics-port-taken", "x")  # a warning
    assert (await exposed(MESH, health).ready()).status == 200


def fetch(url: str) -> tuple[int, str]:
    """Status and text."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_documentation_names_the_pages() -> None:
    text = Path("docs/hub.md").read_text(encoding="utf-8")
    assert all(path in text for path in ("/metrics", "/healthz/ready", "/healthz/live"))
