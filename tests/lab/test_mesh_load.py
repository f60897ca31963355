"""Whatever happens to the agent, and to Envoy on purpose: not one request fails, not one connection is dropped.

A user on one host asks a web server and a Redis on the other all the time; the same in minutes is the long suite.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import meshagent
from meshagent.lab import Host, recipes, wait_until
from tests.lab.mesh import Mesh, open_mesh
from tests.lab.user import BULK, User, unharmed

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("mesh-load")]

LONG = pytest.mark.long
HOSTS = ("web", "cache")


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_mesh() as opened:
        web, cache = opened.lab.host("web"), opened.lab.host("cache")
        recipes.redis(cache)
        recipes.nginx(cache, 8080)
        cache.run(["redis-cli", "setrange", "bulk", str(BULK - 1), "x"])
        opened.join_all((web, []), (cache, [("cache", 6379, "redis"), ("pages", 8080, "http")]))
        yield opened


@pytest.fixture
def user(mesh: Mesh) -> Iterator[User]:
    with using(mesh) as user:
        user.goes_on(time.monotonic())
        yield user


def using(mesh: Mesh) -> User:
    """All four flows of ``web``, by the addresses that the mesh's names have."""
    web = mesh.members["web"]
    cache, pages = (mesh.resolve(web, f"{name}.default.mesh.internal")[0] for name in ("cache", "pages"))
    targets = {"keep": (pages, 8080), "close": (pages, 8080), "redis": (cache, 6379), "bulk": (cache, 6379)}
    return User(web, targets)


def restarted(mesh: Mesh, host: Host, number: int) -> None:
    mesh.agents[host.name].stop(10, number)
    mesh.start(host)


def stopped_for(mesh: Mesh, host: Host, seconds: float) -> None:
    mesh.agents[host.name].send_signal(signal.SIGSTOP)
    time.sleep(seconds)  # the time itself is what is tested
    mesh.agents[host.name].send_signal(signal.SIGCONT)


def upgraded(mesh: Mesh, host: Host, directory: Path) -> None:
    """Another version of the agent starts on the same state."""
    newer = directory / "newer"
    if not newer.exists():
        shutil.copytree(Path(meshagent.__file__).parent, newer / "meshagent")
        (newer / "meshagent/__init__.py").write_text('"""A later release."""\n\n__version__ = "99.0.0"\n')
    mesh.agents[host.name].stop()
    mesh.agents[host.name] = host.start_meshagent("run", log="agent", env={"PYTHONPATH": str(newer)})
    agent = mesh.agents[host.name]
    wait_until(lambda: "version=99.0.0" in agent.text(), 20, "the later release running")


FATES: dict[str, Callable[[Mesh, Host, Path], None]] = {
    "stopped and started": lambda mesh, host, _: restarted(mesh, host, signal.SIGTERM),
    "killed and started": lambda mesh, host, _: restarted(mesh, host, signal.SIGKILL),
    "hung": lambda mesh, host, _: stopped_for(mesh, host, 3.0),
    "upgraded": upgraded,
}


def suffer(mesh: Mesh, fate: str, directory: Path) -> None:
    """Both agents at the same time, until everything is as before; the proxies are who they were."""
    before = {name: mesh.proxy_record(mesh.members[name])["data"]["handle"] for name in HOSTS}
    for name in HOSTS:
        FATES[fate](mesh, mesh.members[name], directory)
    mesh.settle(40)
    assert {name: mesh.proxy_record(mesh.members[name])["data"]["handle"] for name in HOSTS} == before


@pytest.mark.parametrize("fate", FATES)
def test_no_request_fails_when_the_agents_are(mesh: Mesh, user: User, fate: str, tmp_path: Path) -> None:
    since = time.monotonic()
    suffer(mesh, fate, tmp_path)
    unharmed(user.goes_on(since))


def hot_restart(mesh: Mesh, host: Host) -> dict[str, object]:
    answer: dict[str, object] = host.meshagent_json("proxy", "restart")
    return answer


def alone(mesh: Mesh, host: Host) -> bool:
    """No older epoch lives."""
    return host.meshagent_json("proxy", "show", check=False)["parent"] is None


def test_no_request_fails_when_both_proxies_are_restarted_and_the_third_epoch_waits(mesh: Mesh, user: User) -> None:
    since = time.monotonic()
    for name in HOSTS:
        host = mesh.members[name]
        before = mesh.status(host)["proxy"]
        after = hot_restart(mesh, host)
        assert (after["epoch"], after["ready"], after["restarts"]) == (before["epoch"] + 1, True, 0)
        parent = after["parent"]
        assert isinstance(parent, dict) and parent["pid"] == before["pid"] != after["pid"]
        user.goes_on(time.monotonic())
        refused = host.meshagent("proxy", "restart", check=False)
        assert refused.returncode == 1 and "hint:" in refused.stderr, refused.stderr
    assert "lives on" in mesh.members["web"].meshagent("proxy", "show").stdout
    unharmed(user.goes_on(since))
    for name in HOSTS:
        assert mesh.conditions(mesh.members[name]) == []


def test_an_older_epoch_ends_when_its_last_connection_has(mesh: Mesh) -> None:
    for name in HOSTS:
        wait_until(lambda name=name: alone(mesh, mesh.members[name]), 60, f"one epoch on {name}", 0.3)  # type: ignore[misc]
    with using(mesh) as user:
        unharmed(user.goes_on(time.monotonic()))


@LONG
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fate", ["stopped and started", "killed and started", "hung", "upgraded"])
def test_no_request_fails_in_minutes_when_the_agents_are(
    mesh: Mesh, user: User, fate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FATES, "hung", lambda mesh, host, _: stopped_for(mesh, host, 60.0))
    since = time.monotonic()
    for _ in range(2 if fate == "hung" else 8):
        suffer(mesh, fate, tmp_path)
        user.goes_on(time.monotonic(), timeout=60)
    unharmed(user.goes_on(since))


#: The release before, unpacked by packaging/dev/setup long.
OLDER = Path(os.environ.get("MESHAGENT_CACHE", "/var/cache/meshagent-build"), "envoy", "1.39.3", "envoy")


def binary(host: Host, path: Path) -> None:
    """What an upgrade of the package does, through the file an operator edits."""
    settings = host.root / "etc/meshagent/agent.yaml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(f"proxy: {{binary: {path}}}\n")


@LONG
@pytest.mark.timeout(300)
def test_no_request_fails_when_the_proxies_change_their_release_and_change_it_back(mesh: Mesh, envoy: Path) -> None:
    for path, version in ((OLDER, "1.39.3"), (envoy, "1.40.0")):
        for name in HOSTS:
            wait_until(lambda name=name: alone(mesh, mesh.members[name]), 60, f"one epoch on {name}", 0.3)  # type: ignore[misc]
            binary(mesh.members[name], path)
        with using(mesh) as user:
            since = time.monotonic()
            user.goes_on(since)
            for name in HOSTS:
                host = mesh.members[name]
                wait_until(lambda host=host: offered(mesh, host), 30, "the other release is noticed", 0.3)  # type: ignore[misc]
                assert hot_restart(mesh, host)["version"] == version
                user.goes_on(time.monotonic())
            unharmed(user.goes_on(since))


def offered(mesh: Mesh, host: Host) -> bool:
    return "proxy-upgrade-available" in mesh.conditions(host)
