"""The units of packaging/systemd in a Debian 12 that really booted: what systemd does to a host that serves."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import Host, recipes, wait_until
from tests.lab.booted import REPOSITORY, BootedHost
from tests.lab.booted_mesh import connecting, joined, kernel, reaches
from tests.lab.mesh import Mesh, open_mesh
from tests.lab.test_mesh_logins import PRINTING, Printing

pytestmark = [pytest.mark.root, pytest.mark.long, pytest.mark.timeout(600)]

GUARD, AGENT = "meshagent-guard", "meshagent"
#: systemd gives up on a unit after five starts in ten seconds, unless it is told not to.
MANY = 6


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_mesh((4,)) as opened:
        cache = opened.lab.host("cache")
        recipes.redis(cache)
        opened.join_all((cache, [("cache", 6379, "redis")]))
        yield opened


@pytest.fixture(scope="module")
def machine(mesh: Mesh) -> Iterator[BootedHost]:
    with joined(mesh, "units") as host:
        yield host


@pytest.fixture
def host(mesh: Mesh, machine: BootedHost) -> BootedHost:
    """In the mesh, capturing, nothing to complain of."""
    if machine.meshagent("status", check=False).returncode == 3:
        machine.meshagent(*mesh.token(machine.name))
    machine.systemctl("enable", "--now", AGENT)
    machine.systemctl("start", GUARD)
    wait_until(lambda: reaches(mesh, machine) and mesh.conditions(machine) == [], 20, "a host that is well")
    return machine


def rules(host: BootedHost) -> str:
    """With handles: a rule that was made again has another."""
    return host.run(["nft", "--handle", "--stateless", "list", "table", "inet", "meshagent"], check=False).stdout


def group(host: BootedHost, pid: int) -> str:
    """The control group of a process, as seen inside."""
    return host.run(["cat", f"/proc/{pid}/cgroup"]).stdout


def bounded(host: BootedHost, unit: str, seconds: int) -> None:
    """Give a unit another watchdog than the half minute it has."""
    folder = host.root / f"etc/systemd/system/{unit}.service.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "watchdog.conf").write_text(f"[Service]\nWatchdogSec={seconds}s\n")
    host.systemctl("daemon-reload")
    host.systemctl("restart", unit)


def test_enrolling_starts_the_units_and_systemctl_says_how_they_are(mesh: Mesh, host: BootedHost) -> None:
    for unit in (GUARD, AGENT):
        assert host.systemctl("is-active", unit) == "active"
        assert f"{unit}.service" in group(host, host.main_pid(unit))
    assert "rules are in place" in host.systemctl("status", GUARD)
    wait_until(lambda: host.systemctl("show", "--property=StatusText", "--value", AGENT), 20, "a status line")


def test_nothing_fails_while_agent_and_guard_are_restarted_or_reloaded(mesh: Mesh, host: BootedHost) -> None:
    with mesh.busy(host, "cache") as busy, connecting(mesh, host) as calls:
        before = rules(host)
        host.systemctl("restart", AGENT)
        calls.goes_on()
        wait_until(lambda: mesh.status(host)["capture"]["in_sync"], 20, "the agent")
        assert rules(host) == before, "an agent that starts finds everything in place"

        pid = host.main_pid(GUARD)
        host.systemctl("reload", GUARD)
        assert b"--follow" in Path(f"{host.path('/proc')}/{pid}/cmdline").read_bytes(), "another program"
        assert host.main_pid(GUARD) == pid, "the same process"
        calls.goes_on()
        busy.goes_on()
        assert rules(host) == before
        assert calls.failures == []
    assert "rules are in place" in host.systemctl("status", GUARD)
    assert mesh.conditions(host) == []


def test_a_guard_that_is_killed_comes_back_as_its_unit_however_often(mesh: Mesh, host: BootedHost) -> None:
    with mesh.busy(host, "cache") as busy:
        for _ in range(MANY):
            pid = host.main_pid(GUARD)
            host.run(["kill", "-KILL", str(pid)])
            wait_until(lambda pid=pid: host.main_pid(GUARD) not in (0, pid), 15, "another guard")  # type: ignore[misc]
        wait_until(lambda: reaches(mesh, host), 15, "capture")
        busy.goes_on()
    wait_until(lambda: host.systemctl("is-active", GUARD, check=False) == "active", 20, "the unit")
    assert f"{GUARD}.service" in group(host, host.main_pid(GUARD))


@pytest.mark.parametrize("unit", [GUARD, AGENT])
def test_one_that_hangs_is_ended_by_systemds_watchdog_and_started_again(
    mesh: Mesh, host: BootedHost, unit: str
) -> None:
    bounded(host, unit, 10)
    wait_until(lambda: reaches(mesh, host), 20, "capture")
    pid = host.main_pid(unit)
    host.run(["kill", "-STOP", str(pid)])
    wait_until(lambda: host.main_pid(unit) not in (0, pid), 20, "another one")
    assert "watchdog" in host.journal(f"--unit={unit}").lower()
    wait_until(lambda: reaches(mesh, host), 20, "capture")


def test_stopping_the_guard_takes_capture_off_until_it_is_started_again(mesh: Mesh, host: BootedHost) -> None:
    """The emergency switch: an agent that lives must not switch it back."""
    host.systemctl("stop", GUARD)
    assert rules(host) == ""
    wait_until(lambda: "guard-down" in mesh.conditions(host), 15, "the agent to notice")
    assert host.meshagent("status", check=False).returncode == 4
    assert rules(host) == "" and host.main_pid(GUARD) == 0
    host.systemctl("start", GUARD)
    wait_until(lambda: reaches(mesh, host), 20, "capture")


def removal(host: BootedHost, *words: str, **settings: str) -> str:
    """What the package's script says; it must not fail."""
    script = (REPOSITORY / "packaging/scripts/before-removal").read_text()
    done = host.run(["sh", "-s", *words], input=script, env=settings, timeout=120)
    return done.stdout + done.stderr


@pytest.mark.parametrize("words", [("upgrade", "9.9"), ("deconfigure",), ("failed-upgrade", "9.9"), ("1",), ()])
def test_upgrading_the_package_changes_nothing(mesh: Mesh, host: BootedHost, words: tuple[str, ...]) -> None:
    before = rules(host)
    assert removal(host, *words) == ""
    assert rules(host) == before and host.systemctl("is-active", AGENT) == "active"


@pytest.mark.parametrize("state", ["well", "agent-hangs", "stopped"])
def test_removing_the_package_takes_the_host_out_of_the_mesh(mesh: Mesh, host: BootedHost, state: str) -> None:
    if state == "agent-hangs":
        host.run(["kill", "-STOP", str(host.main_pid(AGENT))])
    if state == "stopped":
        host.systemctl("stop", AGENT, GUARD)
    assert "left the mesh" in removal(host, "0" if state == "well" else "remove")
    assert "meshagent" not in kernel(host)
    assert host.meshagent("status", check=False).returncode == 3
    for unit in (AGENT, GUARD):
        assert host.systemctl("is-active", unit, check=False) == "inactive"
        assert host.systemctl("is-enabled", unit, check=False) == "disabled"
    assert host.run(["pgrep", "--count", "--full", "meshagent|envoy"], check=False).stdout.strip() == "0"
    assert all(row["name"] != host.name for row in mesh.hub.meshagent_json("hub", "hosts")["hosts"])
    assert removal(host, "remove") != "", "and once more does no harm"


def test_a_removal_in_which_leaving_hangs_is_over_in_time_and_takes_capture_off(mesh: Mesh, host: BootedHost) -> None:
    hangs = host.root / "usr/local/bin/hangs"
    hangs.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n")
    hangs.chmod(0o755)
    said = removal(host, "remove", MESHAGENT_PROGRAM="/usr/local/bin/hangs", MESHAGENT_REMOVAL_SECONDS="1")
    assert "could not leave" in said and f"meshagent hub host revoke {host.name}" in said
    assert rules(host) == "" and host.systemctl("is-active", AGENT, check=False) == "inactive"


@pytest.fixture(scope="module")
def admin(mesh: Mesh, machine: BootedHost) -> Host:
    """Who logs in."""
    made = mesh.lab.host("admin")
    made.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(made.private / "key")])
    (machine.root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    (machine.root / "root/.ssh/authorized_keys").write_text((made.private / "key.pub").read_text())
    machine.systemctl("start", "ssh.socket")
    wait_until(lambda: login(made, machine, "true"), 20, "a login")
    return made


def ssh(admin: Host, host: BootedHost, command: str) -> list[str]:
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "ConnectTimeout=10", "LogLevel=ERROR")
    words = [word for option in options for word in ("-o", option)]
    return ["ssh", "-i", str(admin.private / "key"), *words, f"root@{host.address4}", command]


def login(admin: Host, host: BootedHost, command: str) -> bool:
    return admin.run(ssh(admin, host, command), check=False, timeout=60).returncode == 0


def test_a_login_by_socket_activation_prints_through_all_that_happens_to_capture(
    mesh: Mesh, host: BootedHost, admin: Host
) -> None:
    spared = {row["port"]: row["reason"] for row in json.loads(host.meshagent("plan", "-o", "json").stdout)["spared"]}
    assert "ssh" in spared[22]
    session = Printing(admin.popen(ssh(admin, host, PRINTING), log="printing"))
    steps = (
        ("capture", "off"),
        ("capture", "on", "--confirm", "0"),
        ("posture", "strict", "--confirm", "0"),
        ("leave", "--drain", "1"),
        tuple(mesh.token(host.name)),
        ("posture", "permissive", "--confirm", "0"),
    )
    for step in steps:
        host.meshagent(*step)
        session.goes_on()
        assert login(admin, host, "true"), step
    wait_until(lambda: reaches(mesh, host), 20, "capture")
    session.goes_on()
    session.program.stop()


def test_systemd_ends_the_agent_in_time_when_the_host_is_shut_down(mesh: Mesh, host: BootedHost) -> None:
    host.reboot()
    wait_until(lambda: reaches(mesh, host), 20, "the mesh, started by systemd alone")
    said = host.run(["journalctl", "--boot=-1", "--no-pager", "--output=cat"]).stdout
    assert "State 'stop-sigterm' timed out" not in said and "guard ended, its table is removed" in said
