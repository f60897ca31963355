"""The agent stops, dies, hangs and comes back, with and without the hub; whoever uses the mesh doesn't notice."""

import re
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from meshagent.lab import Host, recipes, wait_until
from meshagent.lab.waiting import patience, stays_false
from tests.lab.mesh import Connecting, Mesh, open_mesh, took

pytestmark = pytest.mark.root

MESH_NAME = "cache.default.mesh.internal"


@pytest.fixture
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_mesh() as opened:
        web, cache = opened.lab.host("web"), opened.lab.host("cache")
        recipes.redis(cache)
        opened.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        for host in (web, cache):
            wait_until(partial(_is_on_disk, host), 15, "all that was received is on disk")
        yield opened


def _is_on_disk(host: Host) -> bool:
    """The cache is written half a second behind the last change; these tests are about what comes after."""
    return time.time() - (host.root / "var/lib/meshagent/config.cache").stat().st_mtime > 1.5


def rules(host: Host) -> tuple[str, list[int]]:
    """Our table with handles but without counters, and the counters."""
    text = host.run(["nft", "-a", "list", "table", "inet", "meshagent"]).stdout
    counts = [int(count) for count in re.findall(r"packets (\d+)", text)]
    return re.sub(r"(packets|bytes) \d+", r"\1 N", text), counts


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill-9", "stop"])
def test_an_agent_that_ends_and_starts_again_is_not_noticed(mesh: Mesh, number: signal.Signals) -> None:
    web, cache = mesh.members["web"], mesh.members["cache"]
    proxies = {host.name: mesh.status(host)["proxy"]["pid"] for host in (web, cache)}
    with mesh.busy(web, "cache") as busy:
        before = {host.name: rules(host) for host in (web, cache)}
        for host in (web, cache):
            assert took(lambda host=host: mesh.agents[host.name].stop(10, number)) < 2 * patience()  # type: ignore[misc]
            assert mesh.agents[host.name].wait() == (0 if number is signal.SIGTERM else -9)
        busy.goes_on()
        web.connect(busy.address, 6379).close()  # new connections, too, while nobody is there
        for host in (web, cache):
            mesh.start(host)
        mesh.settle()
        for host in (web, cache):
            now = mesh.status(host)
            assert now["proxy"]["pid"] == proxies[host.name]
            assert now["proxy"]["restarts"] == 0
            assert now["conditions"] == []
            (old_text, old_counts), (text, counts) = before[host.name], rules(host)
            assert text == old_text
            assert all(new >= old for new, old in zip(counts, old_counts, strict=True)), "counters were reset"
        busy.goes_on()
    assert busy.slowest < 0.5 * patience()


def test_an_agent_that_starts_with_less_than_the_kernel_knows_refuses_nobody(mesh: Mesh) -> None:
    """The cache is written behind, and disks lose files: what is captured must not shrink before the hub has spoken."""
    web, db = mesh.members["web"], mesh.members["cache"]
    file = web.root / "var/lib/meshagent/config.cache"
    older = file.read_bytes()
    db.meshagent("service", "add", "newest", "--port", "6380", "--target-port", "6379", "--protocol", "redis")
    mesh.offers["cache"] = [*mesh.offers["cache"], ("newest", 6380, "redis")]
    mesh.settle()
    before = rules(web)[0]
    losses = (file.unlink, partial(file.write_bytes, b"damaged"), partial(file.write_bytes, older))
    with Connecting(web, mesh.resolve(web, "newest.default.mesh.internal")[0], 6380) as connecting:
        for lose in losses:
            mesh.agents["web"].kill()
            lose()
            mesh.start(web)
            mesh.settle()
            connecting.goes_on()
            assert rules(web)[0] == before
    assert connecting.failures == []


def test_names_outside_the_mesh_resolve_without_an_agent_and_mesh_names_come_back_with_it(mesh: Mesh) -> None:
    web = mesh.members["web"]
    mesh.agents["web"].kill()
    assert took(lambda: wait_until(lambda: mesh.resolve(web, "cache.lab.test"), 3)) < 2 * patience()
    assert mesh.resolve(web, MESH_NAME) == []
    mesh.start(web)
    assert took(lambda: wait_until(lambda: mesh.resolve(web, MESH_NAME), 5)) < 4 * patience()
    assert mesh.resolve(web, "cache.lab.test")
    assert mesh.redis(web, "cache") == "PONG"


def test_names_resolve_while_the_agent_hangs_and_a_connection_through_the_mesh_goes_on(mesh: Mesh) -> None:
    web = mesh.members["web"]
    with mesh.busy(web, "cache") as busy:
        mesh.agents["web"].send_signal(signal.SIGSTOP)
        web.connect(busy.address, 6379).close()
        busy.goes_on()
        mesh.agents["web"].send_signal(signal.SIGCONT)
        wait_until(lambda: mesh.redis(web, "cache") == "PONG", 5)
        wait_until(lambda: mesh.conditions(web) == [], 10)


def test_hosts_that_reboot_while_the_hub_is_gone_serve_what_they_knew(mesh: Mesh) -> None:
    """No process of before, an empty /run, no rules: what a boot leaves. Wall time is the machine's; ours is CPU."""
    web, cache = mesh.members["web"], mesh.members["cache"]
    mesh.hub_program.kill()
    for host in (web, cache):
        reboot(mesh, host)
    started = [mesh.start(host) for host in (web, cache)]
    wait_until(lambda: mesh.redis(web, "cache", timeout=2) == "PONG", 60)
    used = [psutil.Process(program.pid).cpu_times() for program in started]
    assert all(times.user + times.system < 2 for times in used), used
    status = mesh.status(web)
    assert not status["control_plane"]["connected"]
    assert status["control_plane"]["config_age"] > 0
    assert "hub-unreachable" not in mesh.conditions(web), "a hub that restarts is no news yet"
    assert mesh.resolve(web, MESH_NAME)
    with web.connect(mesh.resolve(web, MESH_NAME)[0], 6379) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"


def test_a_host_that_reboots_with_an_unusable_cache_says_so_and_starts_from_the_hub(mesh: Mesh) -> None:
    web = mesh.members["web"]
    file = web.root / "var/lib/meshagent/config.cache"
    for content in (b"cut off in the middle of", b'{"format": 99, "sha256": "", "saved": ""}\n'):
        reboot(mesh, web)
        file.write_bytes(content)
        mesh.start(web)
        wait_until(lambda: mesh.redis(web, "cache", timeout=2) == "PONG", 60)
        assert file.with_name("config.cache.set-aside").read_bytes() == content
        assert "saved configuration set aside" in mesh.agents["web"].text()
        wait_until(lambda: file.exists() and mesh.conditions(web) == [], 60, "a new cache, nothing to complain about")


def reboot(mesh: Mesh, host: Host) -> None:
    """What the mesh left running on ``host`` ends without a word, /run is empty, the kernel knows no rule."""
    mesh.agents[host.name].kill()
    ours = [mesh.proxy_record(host)["data"]["handle"]["pid"], *_guards(host)]
    host.run(["kill", "-9", *map(str, ours)])
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in ours), 10, "the end of all processes")
    shutil.rmtree(host.root / "run/meshagent")
    host.run(["nft", "flush", "ruleset"])


def _guards(host: Host) -> list[int]:
    return [pid for pid in host.processes() if "meshagent.guard" in psutil.Process(pid).cmdline()]


def test_an_idle_mesh_has_nothing_to_complain_about(mesh: Mesh) -> None:
    """Right after the start, and while nothing happens."""
    assert {name: mesh.conditions(host) for name, host in mesh.members.items()} == {"web": [], "cache": []}
    logs = {name: program.log.stat().st_size for name, program in mesh.agents.items()}
    seen: list[str] = []

    def look() -> None:
        for host in mesh.members.values():
            seen.extend(mesh.conditions(host))

    assert stays_false(look, 6, interval=0.5)
    assert seen == []
    chatter = {name: program.text()[logs[name] :] for name, program in mesh.agents.items()}
    assert chatter == {"web": "", "cache": ""}, "an idle agent has nothing to say"
