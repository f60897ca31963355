"""One host: certificates, what is spared, what is refused, and files that are damaged."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import recipes, wait_until
from tests.lab.mesh import Mesh, open_mesh

pytestmark = pytest.mark.root


@pytest.fixture
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_mesh((4,)) as opened:
        yield opened


STATUS = {
    "": "enrolled host posture identity control_plane capture proxy services plaintext_callers conditions",
    "identity": "spiffe_id not_after renew_at",
    "control_plane": "kind address connected since",
    "capture": "backend active in_sync ports spared pending_confirm_until",
    "proxy": "pid version ready epoch restarts",
}


def test_certificates_rotate_under_a_busy_connection_and_status_has_its_shape(mesh: Mesh) -> None:
    web, cache = mesh.lab.host("web"), mesh.lab.host("cache")
    recipes.redis(cache)
    mesh.join_all((web, []), (cache, [("cache", 6379, "redis")]))
    with mesh.busy(web, "cache") as busy:
        for host in (web, cache):
            before = host.meshagent_json("certs")
            after = host.meshagent_json("certs", "rotate")
            assert after["serial"] != before["serial"]
            assert after["spiffe_id"] == before["spiffe_id"]
            assert host.meshagent_json("certs")["serial"] == after["serial"]
            busy.goes_on()
        assert mesh.redis(web, "cache") == "PONG"
        busy.goes_on()
    status = mesh.status(cache)
    for part, keys in STATUS.items():
        assert set(keys.split()) <= set(status[part] if part else status)
    assert set(status["services"][0]) >= {"name", "host", "port", "protocol", "healthy", "reason"}
    assert rss(mesh.agents["web"].pid) < 80 << 10, "64 MB is the goal, 80 the alarm"


def rss(pid: int) -> int:
    """KiB, as the kernel counts it (proc(5), smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


def test_sshd_on_a_strange_port_stays_reachable_though_declared(mesh: Mesh) -> None:
    cache, outsider = mesh.lab.host("cache"), mesh.lab.host("outsider")
    recipes.sshd(cache, 2022)
    mesh.join(cache, ("login", 2022, "tcp"))
    status = wait_until(lambda: (s := mesh.status(cache))["capture"]["active"] and s["proxy"]["ready"] and s, 10)
    assert status["posture"] == "permissive"
    cache.meshagent("posture", "strict", "--confirm", "0")
    status = wait_until(lambda: (s := mesh.status(cache))["posture"] == "strict" and s, 5)
    spared = {row["port"]: row["reason"] for row in status["capture"]["spared"]}
    assert "sshd" in spared[2022]
    assert 2022 not in status["capture"]["ports"]
    with outsider.connect(cache.address, 2022) as client:
        assert client.recv(4) == b"SSH-"


def test_a_second_agent_and_one_without_enrolment_are_refused(mesh: Mesh) -> None:
    web = mesh.lab.host("web")
    none = web.meshagent("run", check=False)
    assert none.returncode == 3
    assert "not enrolled" in none.stderr
    assert json.loads(web.meshagent("status", "-o", "json", check=False).stdout) == {"enrolled": False}
    mesh.join_all((web, []))
    second = web.meshagent("run", check=False, timeout=10)
    assert second.returncode == 1
    assert "already" in second.stderr
    assert len(second.stderr.splitlines()) <= 3, second.stderr
    assert mesh.status(web)["control_plane"]["connected"]
    assert mesh.agents["web"].alive


@pytest.mark.parametrize(
    ("name", "code"), [("workload.json", "identity"), ("enrolment.json", "enrolment"), ("footprint.json", "footprint")]
)
def test_a_damaged_identity_is_told_and_never_guessed(mesh: Mesh, name: str, code: str) -> None:
    web = mesh.lab.host("web")
    mesh.join_all((web, []))
    mesh.agents["web"].stop()
    path = web.root / "var/lib/meshagent" / name
    kept = path.read_bytes()
    path.write_bytes(kept[: len(kept) // 2])
    done = web.meshagent("run", "-o", "json", check=False, timeout=10)
    assert done.returncode == 1, done.stderr
    error = json.loads(done.stderr.splitlines()[-1])["error"]
    assert code in error["code"]
    assert error["hint"]
    path.write_bytes(kept)
    mesh.start(web)
    mesh.settle()


def test_a_damaged_memory_is_set_aside_and_rebuilt(mesh: Mesh) -> None:
    web = mesh.lab.host("web")
    mesh.join_all((web, []))
    mesh.agents["web"].stop()
    state = web.root / "var/lib/meshagent"
    (state / "config.cache").write_bytes(b"\0" * 100)
    (state / "proxy.json").write_text("{")
    (web.root / "run/meshagent/proxy.json").write_text("nonsense")
    mesh.start(web)
    wait_until(lambda: mesh.is_ready(web), 10)
    assert "saved configuration set aside" in mesh.agents["web"].text()
    assert (state / "config.cache.set-aside").exists()
    wait_until(lambda: mesh.conditions(web) == [], 5, "the memory rebuilt")
    assert (state / "config.cache").stat().st_size > 100
