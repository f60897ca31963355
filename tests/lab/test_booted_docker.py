"""A real dockerd with a real container beside capture: its rules are its own, ours stay, the published port works."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshagent.lab import Host, recipes, wait_until
from tests.lab.booted import BootedHost
from tests.lab.booted_mesh import back_in_a_second, joined, reaches
from tests.lab.downloads import DEBIAN12_DOCKER
from tests.lab.firewalls import require_undisturbed, theirs
from tests.lab.mesh import Mesh, open_mesh
from tests.lab.test_published_port import redis

pytestmark = [pytest.mark.root, pytest.mark.long, pytest.mark.timeout(600)]

#: An image needs no registry: the program and its libraries.
_CONTAINER = """
systemctl disable --now redis-server
cd /
tar -chf - /usr/bin/redis-server $(ldd /usr/bin/redis-server | grep -o '/[^ ]*') 2>/dev/null | docker import - redis
docker run --detach --restart always --name box --publish 6379:6379 redis redis-server --protected-mode no --save ""
"""


@dataclass
class Docked:
    mesh: Mesh
    host: BootedHost
    web: Host
    outsider: Host

    def serves(self) -> bool:
        """From inside and outside the mesh, to callers that are seen with their own addresses."""
        inside = self.mesh.redis(self.web, "box", "client", "list")
        outside = redis(self.outsider, self.host.address4, "client", "list")
        return f"addr={self.web.address4}:" in inside and f"addr={self.outsider.address4}:" in outside

    def serves_the_mesh_alone(self) -> bool:
        """Under strict: what comes in plainly is refused where it is forwarded, before it reaches the container."""
        try:
            self.outsider.connect(self.host.address4, 6379, timeout=2).close()
        except ConnectionRefusedError:
            return f"addr={self.web.address4}:" in self.mesh.redis(self.web, "box", "client", "list")
        return False


@pytest.fixture(scope="module")
def docked(envoy: Path) -> Iterator[Docked]:
    with open_mesh((4,)) as mesh:
        cache, outsider = mesh.lab.host("cache"), mesh.lab.host("outsider")
        recipes.redis(cache)
        mesh.join_all((cache, [("cache", 6379, "redis")]))
        with joined(mesh, "dock", root=DEBIAN12_DOCKER) as host:
            wait_until(lambda: host.run(["docker", "info"], check=False).returncode == 0, 20, "dockerd")
            host.run(["sh", "-ec", _CONTAINER], timeout=120)
            host.meshagent("service", "add", "box", "--port", "6379", "--protocol", "redis")
            made = Docked(mesh, host, cache, outsider)
            wait_until(made.serves, 20, "the published port, from inside and outside the mesh")
            yield made


@pytest.fixture(params=["open", "closed"])
def policy(request: pytest.FixtureRequest, docked: Docked) -> str:
    config = docked.host.root / "etc/meshagent/agent.yaml"
    config.write_text(f"capture: {{on_proxy_failure: {request.param}}}\n")
    wait_until(
        lambda: docked.serves() and docked.mesh.status(docked.host)["capture"]["in_sync"], 20, "a host that serves"
    )
    return str(request.param)


def restart(host: BootedHost) -> None:
    host.systemctl("reset-failed", "docker")  # its unit allows three starts a minute
    host.systemctl("restart", "docker")


def test_dockerd_is_restarted_and_neither_its_rules_nor_ours_are_missed(docked: Docked, policy: str) -> None:
    host = docked.host
    before = sorted(theirs(host))  # it makes chains anew, in another order
    assert any("DOCKER" in line for line in before)
    with docked.mesh.busy(host, "cache") as busy:
        back_in_a_second(docked.mesh, host, *[lambda: restart(host)] * 3)
        busy.goes_on()
    wait_until(docked.serves, 20, "the published port")
    assert sorted(theirs(host)) == before


def test_nothing_that_capture_does_disturbs_dockers_rules_or_their_counters(docked: Docked, policy: str) -> None:
    host = docked.host
    before = theirs(host, counted=True)
    for words in (("capture", "off"), ("capture", "on", "--confirm", "0"), ("posture", "strict", "--confirm", "0")):
        host.meshagent(*words)
        require_undisturbed(before, theirs(host, counted=True))
    wait_until(docked.serves_the_mesh_alone, 20, "the published port under strict")
    require_undisturbed(before, theirs(host, counted=True))
    host.meshagent("posture", "permissive", "--confirm", "0")
    wait_until(docked.serves, 20, "the published port")
    assert reaches(docked.mesh, host)
    require_undisturbed(before, theirs(host, counted=True))
