"""A Debian 12 that really booted: what its systemd, networkd, resolved and nftables.service do to capture; a reboot."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import recipes, wait_until
from tests.lab.booted import BootedHost
from tests.lab.booted_mesh import back_in_a_second, joined, kernel, reaches
from tests.lab.mesh import Mesh, open_mesh

pytestmark = [pytest.mark.root, pytest.mark.long, pytest.mark.timeout(600)]

_NUMBERS = itertools.count()
RULES = "flush ruleset\ntable inet filter {\n chain input {\n  type filter hook input priority 0;\n }\n}\n"


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_mesh((4,)) as opened:
        cache = opened.lab.host("cache")
        recipes.redis(cache)
        opened.join_all((cache, [("cache", 6379, "redis")]))
        yield opened


@pytest.fixture(scope="module", params=["open", "closed"])
def old(request: pytest.FixtureRequest, mesh: Mesh) -> Iterator[BootedHost]:
    """In the mesh, capturing; under either policy its table belongs to the guard."""
    name, config = f"old-{next(_NUMBERS)}", f"capture: {{on_proxy_failure: {request.param}}}\n"
    with joined(mesh, name, config, {"etc/nftables.conf": RULES}) as host:
        yield host


def test_networkd_deletes_foreign_routes_and_rules_and_they_are_back(mesh: Mesh, old: BootedHost) -> None:
    back_in_a_second(
        mesh,
        old,
        lambda: old.systemctl("restart", "systemd-networkd"),
        lambda: old.run(["networkctl", "reload"]),
        lambda: old.run(["networkctl", "reconfigure", "host0"]),
        # What networkd was asked to do, it does some time later: the rule may be gone once more just now.
        lambda: wait_until(
            lambda: old.run(["ip", "rule", "del", "fwmark", "0x6d610001"]), 20, "the rule, to delete it"
        ),
        lambda: old.run(["ip", "route", "flush", "proto", "109"]),
    )


def test_nftables_service_flushes_and_capture_is_back(mesh: Mesh, old: BootedHost) -> None:
    words = ("start", "reload", "restart", "stop", "start")
    back_in_a_second(mesh, old, *(lambda word=word: old.systemctl(word, "nftables") for word in words))
    assert "table inet filter" in old.run(["nft", "list", "tables"]).stdout


@pytest.mark.parametrize("conf", ["nameserver 127.0.0.53\n", "nameserver 127.0.0.53\nnameserver {real}\n"])
def test_resolved_and_the_agent_ask_each_other_no_more_than_once(mesh: Mesh, old: BootedHost, conf: str) -> None:
    """With both in resolv.conf resolved's own queries go to an address whose port 53 is captured."""
    resolver = mesh.lab.resolver
    path = old.path("/etc/resolv.conf")
    path.unlink()
    path.write_text(conf.format(real=resolver.host.address4))
    time.sleep(2)  # the agent looks at resolv.conf once a second
    names = [f"n{number}-{len(conf)}-{old.name}.lab.test" for number in range(40)]
    for name in names:
        resolver.add(name, "A", "192.0.2.7")
    before = len(resolver.queries())
    for name in names:
        assert "192.0.2.7" in mesh.resolve(old, name)
    asked = [query for query in resolver.queries()[before:] if query.name in names]
    assert len(asked) <= 4 * len(names), "A and AAAA, and each perhaps once more"
    assert reaches(mesh, old)


def suspended(mesh: Mesh, host: BootedHost) -> bool:
    return "capture-suspended" in mesh.conditions(host)


def test_what_was_switched_off_is_off_after_a_reboot(mesh: Mesh, old: BootedHost) -> None:
    old.meshagent("capture", "off")
    old.reboot()
    wait_until(lambda: suspended(mesh, old), 20, "the agent")
    wait_until(lambda: mesh.status(old)["proxy"]["ready"], 20, "the proxy")
    assert "chain to_proxy" not in kernel(old)
    old.meshagent("capture", "on", "--confirm", "0")
    wait_until(lambda: reaches(mesh, old), 15, "capture")


def test_a_change_that_was_undone_is_remembered_over_a_reboot(mesh: Mesh, old: BootedHost) -> None:
    """A trial under way can't be tested here: the number of a boot is the kernel's, which isn't started again."""
    old.meshagent("posture", "strict", "--confirm", "2")
    wait_until(lambda: "rolled-back" in mesh.conditions(old), 15, "the roll-back")
    old.reboot()
    wait_until(lambda: "rolled-back" in mesh.conditions(old), 20, "the agent to say what was undone")
    assert "chain to_proxy" not in kernel(old)
    old.meshagent("posture", "permissive", "--confirm", "0")
    old.meshagent("capture", "on", "--confirm", "0")
    wait_until(lambda: reaches(mesh, old) and mesh.conditions(old) == [], 20, "capture")


def test_a_reboot_leaves_nothing_of_ours_and_the_agent_captures_again_though_the_hub_is_gone(
    mesh: Mesh, old: BootedHost
) -> None:
    old.systemctl("enable", "nftables")
    mesh.hub_program.kill()
    try:
        old.systemctl("disable", "meshagent")
        old.power_off()
        old.boot()
        assert "meshagent" not in kernel(old)
        old.systemctl("enable", "--now", "meshagent")
        wait_until(lambda: reaches(mesh, old), 20, "the mesh from last-known-good")
    finally:
        mesh.hub_program = mesh.hub.start_meshagent("hub", "run", log="hub")
        wait_until(lambda: mesh.hub.meshagent_json("hub", "hosts", check=False) is not None, 15)
