"""Metrics and health on a running host and its hub: what collectors and load balancers see."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import Host, wait_until
from tests.lab.mesh import Mesh, open_web_and_cache

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("mesh-metrics")]

TAKER = "import socket; s = socket.create_server(('127.0.0.1', 15020)); print('taken', flush=True); input()"


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_web_and_cache() as opened:
        yield opened


def fetch(host: Host, path: str, where: str = "127.0.0.1:15020") -> tuple[int, str]:
    """HTTP status (0: no connection) and body, asked on ``host``."""
    done = host.run(["curl", "-s", "-m", "5", "-w", "\n%{http_code}", f"http://{where}{path}"], check=False)
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), body


def samples(text: str) -> dict[str, float]:
    """Sample with its labels -> value; fails on a line that Prometheus couldn't read."""
    found = {}
    for line in filter(None, text.splitlines()):
        if not line.startswith("#"):
            match = re.fullmatch(r"([a-zA-Z_:][\w:]*(?:\{.*\})?) (\S+)", line)
            assert match, line
            found[match[1]] = float(match[2])
    return found


def test_a_host_tells_its_own_numbers_and_its_envoys_at_one_place(mesh: Mesh) -> None:
    web = mesh.members["web"]
    assert mesh.redis(web, "cache") == "PONG"
    status, text = fetch(web, "/metrics")
    assert status == 200
    found = samples(text)
    assert found["meshagent_ready"] == found["meshagent_capture_active"] == found["meshagent_guard_up"] == 1
    assert found["meshagent_control_plane_connected"] == found["meshagent_proxy_ready"] == 1
    assert found['meshagent_dns_queries_total{answered_by="mesh"}'] >= 1
    assert found["meshagent_certificate_expiry_timestamp_seconds"] > 1_700_000_000
    assert any(name.startswith("envoy_") for name in found) and found["meshagent_proxy_stats_merged"] == 1
    assert samples(fetch(mesh.members["cache"], "/metrics")[1])['meshagent_service_healthy{service="cache"}'] == 1


def test_both_ends_tell_what_a_service_was_used_for_by_endpoint(mesh: Mesh) -> None:
    web, cache = mesh.members["web"], mesh.members["cache"]

    def told(host: Host, name: str, direction: str, endpoint: str) -> float:
        labels = f'direction="{direction}",service="cache.default.mesh.internal",port="6379",endpoint="{endpoint}"'
        return samples(fetch(host, "/metrics")[1]).get(f"meshagent_upstream_{name}{{{labels}}}", 0)

    ends = (web, "outbound", f"{cache.address}:15008"), (cache, "inbound", f"{cache.address}:6379")
    before = [told(host, "requests_total", *where) for host, *where in ends]
    with mesh.busy(web, "cache"):
        for (host, *where), had in zip(ends, before, strict=True):
            assert told(host, "requests_total", *where) == had + 1
            assert told(host, "requests_active", *where) == told(host, "healthy", *where) == 1
            assert told(host, "connect_failures_total", *where) == told(host, "request_errors_total", *where) == 0
    for host, *where in ends:
        wait_until(lambda: not told(host, "requests_active", *where), 10, "its end")  # noqa: B023
    found = samples(fetch(web, "/metrics")[1])
    assert found['envoy_listener_downstream_cx_total{envoy_listener_address="outbound"}'] > before[0]
    assert samples(fetch(cache, "/metrics")[1])['envoy_listener_ssl_handshake{envoy_listener_address="inbound"}'] > 0


def test_conditions_are_counted_by_code(mesh: Mesh) -> None:
    web = mesh.members["web"]
    web.meshagent("capture", "off")
    try:
        wait_until(lambda: not samples(fetch(web, "/metrics")[1])["meshagent_capture_active"], 10, "capture off")
        found = samples(fetch(web, "/metrics")[1])
        assert found['meshagent_conditions{code="capture-suspended",severity="warning"}'] == 1
    finally:
        web.meshagent("capture", "on", "--confirm", "0")
    wait_until(lambda: samples(fetch(web, "/metrics")[1])["meshagent_capture_active"], 10, "capture on")


def test_health_pages_say_ready_and_alive_and_nobody_else_can_ask(mesh: Mesh) -> None:
    web, cache = mesh.members["web"], mesh.members["cache"]
    assert fetch(web, "/healthz/live") == (200, "alive\n") and fetch(web, "/healthz/ready") == (200, "ready\n")
    assert fetch(cache, "/metrics", f"{web.address}:15020")[0] == 0
    assert fetch(cache, "/metrics", f"{mesh.hub.address}:15080")[0] == 0


def test_the_hub_tells_its_numbers(mesh: Mesh) -> None:
    status, text = fetch(mesh.hub, "/metrics", "127.0.0.1:15080")
    found = samples(text)
    assert status == 200 and found["meshagent_hub_hosts"] == found["meshagent_hub_hosts_connected"] == 2
    assert found["meshagent_hub_services"] == 1 and found["meshagent_hub_streams"] == 2
    assert fetch(mesh.hub, "/healthz/ready", "127.0.0.1:15080") == (200, "ready\n")


def test_a_taken_metrics_port_is_a_warning_and_nothing_else(mesh: Mesh) -> None:
    web = mesh.members["web"]
    mesh.agents["web"].stop()
    taker = web.popen(["python3", "-c", TAKER], log="taker", stdin=-1)
    wait_until(lambda: "taken" in taker.text(), 10, "the taker")
    mesh.start(web)
    wait_until(lambda: mesh.is_ready(web), 20, "web ready")
    wait_until(lambda: "metrics-port-taken" in mesh.conditions(web), 10, "the condition")
    assert mesh.redis(web, "cache") == "PONG"
    taker.stop()
    wait_until(lambda: fetch(web, "/healthz/live")[0] == 200, 20, "metrics")
    wait_until(lambda: "metrics-port-taken" not in mesh.conditions(web), 10, "the end of the condition")
