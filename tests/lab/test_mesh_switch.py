"""``capture off`` and ``capture on`` on hosts that serve: nobody is cut off, and it lasts."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import Host, recipes, wait_until
from meshagent.machine import state
from meshagent.model.errors import MeshagentError
from tests.lab.mesh import Mesh, open_mesh, wait_hub

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("switch")]


@pytest.fixture(scope="module")
def opened(envoy: Path) -> Iterator[Mesh]:
    with open_mesh((4,)) as mesh:
        web, cache = mesh.lab.host("web"), mesh.lab.host("cache")
        recipes.redis(cache)
        mesh.before["web"] = web.snapshot()
        mesh.join_all((cache, [("cache", 6379, "redis")]), (web, []))
        yield mesh


@pytest.fixture
def mesh(opened: Mesh) -> Iterator[Mesh]:
    """Everything on before and after each test."""
    yield opened
    web = opened.lab.hosts["web"]
    if not opened.agents["web"].alive:
        opened.start(web)
        opened.settle()
    web.meshagent("capture", "on", "--confirm", "0")
    web.meshagent("posture", "permissive", "--confirm", "0")
    opened.settle()


def captures(host: Host) -> bool:
    """Whether a new connection to a mesh address would be captured, as the kernel has it."""
    return "chain to_proxy" in host.run(["nft", "list", "ruleset"]).stdout


def off_and_says_so(mesh: Mesh, host: Host) -> None:
    status = mesh.status(host)
    assert not status["capture"]["active"] and status["capture"]["suspended_since"]
    assert [c["severity"] for c in status["conditions"] if c["code"] == "capture-suspended"] == ["warning"]
    assert host.meshagent("status").stdout.count("meshagent capture on") >= 2
    assert not captures(host)


def test_off_and_on_again_keep_open_connections_and_everybody_says_what_holds(mesh: Mesh) -> None:
    web = mesh.lab.hosts["web"]
    with mesh.busy(web, "cache") as busy:
        answer = web.meshagent_json("capture", "off")
        assert answer["suspended"] and answer["changed"] and answer["since"] and answer["daemon"]
        off_and_says_so(mesh, web)
        busy.goes_on(20)
        with pytest.raises(ConnectionRefusedError):  # a virtual address has no direct way: refused at once, no timeout
            web.connect(busy.address, 6379)
        again = web.meshagent_json("capture", "off")
        assert (again["changed"], again["since"]) == (False, answer["since"])
        planned = web.meshagent("plan").stdout
        assert "switched off" in planned and "meshagent capture on" in planned
        busy.goes_on(20)
        on = web.meshagent_json("capture", "on", "--confirm", "0")
        assert (on["suspended"], on["since"], on["changed"]) == (False, None, True)
        busy.goes_on(20)
    assert mesh.redis(web, "cache") == "PONG"
    assert mesh.conditions(web) == []
    assert not web.meshagent_json("capture", "on", "--confirm", "60")["changed"]
    assert mesh.status(web)["capture"]["pending_confirm_until"] is None


def test_off_lasts_over_a_killed_agent_and_a_killed_guard(mesh: Mesh) -> None:
    web = mesh.lab.hosts["web"]
    web.meshagent("capture", "off")
    mesh.agents["web"].kill()
    guard = next(pid for pid in web.processes() if b"meshagent.guard" in Path(f"/proc/{pid}/cmdline").read_bytes())
    web.run(["kill", "-9", str(guard)])
    mesh.start(web)
    wait_until(lambda: mesh.status(web)["proxy"]["ready"], 40, "the agent")
    off_and_says_so(mesh, web)
    web.meshagent("capture", "on", "--confirm", "0")
    wait_until(lambda: mesh.redis(web, "cache") == "PONG", 30)


def test_off_ends_a_change_on_trial_and_on_brings_it_back_on_a_trial_of_its_own(mesh: Mesh) -> None:
    web = mesh.lab.hosts["web"]
    web.meshagent("posture", "outbound", "--confirm", "60")
    assert web.meshagent_json("capture", "off")["confirm_until"] is None
    status = mesh.status(web)
    assert status["capture"]["pending_confirm_until"] is None
    said = web.meshagent_json("posture", "strict", "--confirm", "1")  # nothing is captured, so nothing is on trial
    assert said["suspended"] and said["confirm_until"] is None
    assert web.meshagent_json("capture", "on", "--confirm", "3")["confirm_until"]
    wait_until(lambda: "rolled-back" in mesh.conditions(web), 30, "the roll-back")
    assert not captures(web)
    assert web.meshagent_json("capture", "on", "--confirm", "0")["changed"]  # a person decided: it is on again
    assert mesh.status(web)["posture"] == "strict"
    wait_until(lambda: captures(web) and mesh.conditions(web) == [], 30)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGKILL, id="agent-killed"),
        pytest.param(signal.SIGSTOP, id="agent-hangs", marks=pytest.mark.long),
    ],
)
def test_without_an_agent_off_works_at_once_and_on_says_what_to_do(mesh: Mesh, how: signal.Signals) -> None:
    web, agent = mesh.lab.hosts["web"], mesh.agents["web"]
    with mesh.busy(web, "cache") as busy:
        agent.send_signal(how)
        if how is signal.SIGKILL:
            agent.wait()
        answer = web.meshagent_json("capture", "off")
        assert answer["suspended"] and answer["changed"] and not answer["daemon"]
        assert not captures(web)
        busy.goes_on(20)
        refused = web.meshagent("capture", "on", "--confirm", "0", check=False)
        assert refused.returncode == 4 and "hint:" in refused.stderr
        assert "are not in this plan" in web.meshagent("plan").stdout  # a plan needs no agent
        if how is signal.SIGKILL:
            mesh.start(web)
        else:
            agent.send_signal(signal.SIGCONT)
        wait_until(lambda: "capture-suspended" in mesh.conditions(web), 40, "the agent to hear of it")
        off_and_says_so(mesh, web)
        busy.goes_on(20)


def test_leaving_while_capture_is_off_gives_the_host_back(mesh: Mesh) -> None:
    web = mesh.lab.hosts["web"]
    web.meshagent("capture", "off")
    mesh.leave(web)
    assert mesh.left_over(web) == []
    mesh.join_all((web, []))


def test_what_is_known_of_the_mesh_may_be_too_old_to_go_by_until_the_hub_is_back(opened: Mesh) -> None:
    web = opened.lab.hosts["web"]
    config = web.root / "etc/meshagent/agent.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    before = config.read_text() if config.exists() else ""
    with opened.busy(web, "cache") as busy:
        opened.hub_program.stop()
        opened.agents["web"].stop()
        heard_an_hour_ago(web)
        config.write_text(before + "\nlast_known: {max_age: 30m}\n")
        opened.start(web)
        try:
            wait_until(lambda: "config-too-old" in conditions_of(opened, web), 60, "the condition", 0.2)
            assert opened.status(web)["control_plane"]["config_age"] > 3600
            wait_until(lambda: not captures(web), 20, "nothing new captured")
            with pytest.raises(ConnectionRefusedError):
                web.connect(busy.address, 6379)
            busy.goes_on(20)
            opened.hub_program = opened.hub.start_meshagent("hub", "run", log="hub")
            wait_hub(opened)
            opened.settle(60)
            wait_until(lambda: captures(web), 20, "captured again")
            assert opened.redis(web, "cache") == "PONG"
            busy.goes_on(20)
        finally:
            config.write_text(before)
    wait_until(lambda: opened.conditions(web) == [], 30, "web as before")


def heard_an_hour_ago(host: Host) -> None:
    """As if the hub had been away for so long before the agent starts."""
    path = host.root / "var/lib/meshagent/heard.json"
    found = state.read_state(path).data or {}
    state.write_state(path, {**found, "boot_seconds": found["boot_seconds"] - 3600})


def conditions_of(mesh: Mesh, host: Host) -> list[str]:
    """None while the agent starts."""
    with contextlib.suppress(MeshagentError):
        return mesh.conditions(host)
    return []
