"""``capture.units`` and ``capture.exclude.units`` on a Debian 12 that really booted: real units, really restarted.

A unit that starts gets a control group of another number, which the rules have to learn.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import recipes, wait_until
from tests.lab.booted import BootedHost
from tests.lab.booted_mesh import address, joined
from tests.lab.mesh import Mesh, open_mesh

pytestmark = [pytest.mark.root, pytest.mark.long, pytest.mark.timeout(600)]

#: Asks redis again and again, over a new connection each time, and writes how each went below its own pid.
_CALLER = """\
import os, socket, sys, time
with open(f"/run/caller-{os.getpid()}", "w", buffering=1) as log:
    while True:
        try:
            with socket.create_connection((sys.argv[1], 6379), 5) as client:
                client.sendall(b"PING\\r\\n")
                log.write(client.recv(64).decode().strip() + "\\n")
        except OSError as error:
            log.write(f"{error.strerror}\\n")
        time.sleep(0.02)
"""
_UNIT = """\
[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/bin/python3 /usr/local/bin/caller {target}
TimeoutStopSec=5
{more}
"""
THROUGH, REFUSED = "+PONG", "Connection refused"


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_mesh((4,)) as opened:
        cache = opened.lab.host("cache")
        recipes.redis(cache)
        opened.join_all((cache, [("cache", 6379, "redis")]))
        yield opened


@pytest.fixture(scope="module")
def host(mesh: Mesh) -> Iterator[BootedHost]:
    """Two units in a slice, ``one`` and ``two``, and ``alone`` beside it, each asking redis through the mesh."""
    with joined(mesh, "chosen", files={"usr/local/bin/caller": _CALLER}) as machine:
        units = {"one": "Slice=shop.slice", "two": "Slice=shop.slice", "alone": ""}
        for name, more in units.items():
            unit = machine.root / f"etc/systemd/system/{name}.service"
            unit.write_text(_UNIT.format(target=address(mesh, machine), more=more))
        machine.systemctl("daemon-reload")
        machine.systemctl("start", *units)
        for name in units:
            wait_until(lambda name=name: heard(machine, name)[-1:] == [THROUGH], 20, name)  # type: ignore[misc]
        yield machine
        machine.systemctl("stop", *units)


def heard(host: BootedHost, unit: str) -> list[str]:
    """How the connections of the process that a unit has now went, oldest first."""
    return host.run(["cat", f"/run/caller-{host.main_pid(unit)}"], check=False).stdout.splitlines()


def configure(mesh: Mesh, host: BootedHost, capture: str) -> None:
    (host.root / "etc/meshagent/agent.yaml").write_text(f"capture: {capture}\n")


def goes_on(host: BootedHost, unit: str, answer: str) -> None:
    """From some moment on each connection of the unit ends like this: thirty in a row."""
    wait_until(lambda: heard(host, unit)[-30:] == [answer] * 30, 20, f"{unit}: {answer}")


@pytest.mark.parametrize(
    ("setting", "chosen", "others"), [("units", THROUGH, REFUSED), ("exclude: {units", REFUSED, THROUGH)]
)
def test_a_unit_is_in_the_mesh_or_out_of_it_also_after_each_restart(
    mesh: Mesh, host: BootedHost, setting: str, chosen: str, others: str
) -> None:
    configure(mesh, host, f"{{{setting}: [alone.service]{'}' * (1 + setting.count('{'))}")
    goes_on(host, "alone", chosen)
    goes_on(host, "one", others)
    for _ in range(5):
        before = host.main_pid("alone")
        host.systemctl("restart", "alone")
        assert host.main_pid("alone") not in (0, before)
        goes_on(host, "alone", chosen)
        assert heard(host, "one")[-1] == others
    assert mesh.conditions(host) == []


def test_a_unit_that_is_stopped_is_told_and_captured_again_when_it_starts(mesh: Mesh, host: BootedHost) -> None:
    configure(mesh, host, "{units: [alone.service]}")
    goes_on(host, "one", REFUSED)
    host.systemctl("stop", "alone")
    wait_until(lambda: "capture-waiting" in mesh.conditions(host), 20, "the agent to say that it doesn't run")
    host.systemctl("start", "alone")
    goes_on(host, "alone", THROUGH)
    wait_until(lambda: mesh.conditions(host) == [], 20, "a host that is well")


def test_in_a_slice_that_lives_not_even_the_first_connection_is_too_early(mesh: Mesh, host: BootedHost) -> None:
    configure(mesh, host, "{units: [shop.slice]}")
    goes_on(host, "alone", REFUSED)
    goes_on(host, "one", THROUGH)
    for _ in range(3):
        host.systemctl("restart", "one")
        goes_on(host, "one", THROUGH)
        assert set(heard(host, "one")) == {THROUGH}


def test_a_slice_that_ended_with_its_last_unit_is_matched_when_it_starts_again(mesh: Mesh, host: BootedHost) -> None:
    configure(mesh, host, "{units: [shop.slice]}")
    goes_on(host, "alone", REFUSED)
    host.systemctl("stop", "one", "two", "shop.slice")
    wait_until(lambda: "capture-waiting" in mesh.conditions(host), 20, "the agent to say that it doesn't run")
    host.systemctl("start", "one", "two")
    for unit in ("one", "two"):
        goes_on(host, unit, THROUGH)
