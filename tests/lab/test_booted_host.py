"""A Debian 12 that really booted: what its systemd, networkd, resolved and nftables.service do to capture; a reboot."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meshagent.lab import recipes, wait_until
from tests.lab.booted import BootedHost, booted
from tests.lab.mesh import Mesh, open_mesh, took

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
    name = f"old-{request.param}-{next(_NUMBERS)}"
    with booted(mesh.lab, name, {"etc/nftables.conf": RULES}) as host:
        config = host.root / "etc/meshagent/agent.yaml"
        config.parent.mkdir(parents=True)
        config.write_text(f"capture: {{on_proxy_failure: {request.param}}}\n")
        host.meshagent(*mesh.token(host.name))
        host.start_agent()
        wait_until(lambda: reaches(mesh, host), 20, "the first answer through the mesh")
        yield host
        host.meshagent("leave", "--drain", "1", "--purge")


def reaches(mesh: Mesh, host: BootedHost) -> bool:
    """By name, through the proxy."""
    addresses = mesh.resolve(host, "cache.default.mesh.internal")
    if not addresses:
        return False
    with host.connect(addresses[0], 6379) as client:
        client.sendall(b"PING\r\n")
        return client.recv(64) == b"+PONG\r\n"


def kernel(host: BootedHost) -> str:
    """All that is ours in the kernel."""
    commands = (
        "nft -s list table inet meshagent; nft -s list table inet meshagent_anchor",
        "ip -N rule show | grep 109; ip -N route show proto 109; ip -N route show table 28001; ip -6 -N rule show",
    )
    return host.run(["sh", "-c", "; ".join(commands)], check=False).stdout


def back_in_a_second(mesh: Mesh, host: BootedHost, *steps: Callable[[], object]) -> None:
    """After most of the steps: a machine that is busy with other things may once take longer."""
    wanted, waits = kernel(host), []
    for step in steps:
        step()
        waits.append(took(lambda: wait_until(lambda: kernel(host) == wanted, 20, "rules and routes are back")))
        assert reaches(mesh, host)
    assert sorted(waits)[len(waits) // 2] < 1, waits


def test_networkd_deletes_foreign_routes_and_rules_and_they_are_back(mesh: Mesh, old: BootedHost) -> None:
    back_in_a_second(
        mesh,
        old,
        lambda: old.systemctl("restart", "systemd-networkd"),
        lambda: old.run(["networkctl", "reload"]),
        lambda: old.run(["networkctl", "reconfigure", "host0"]),
        lambda: old.run(["ip", "rule", "del", "fwmark", "0x6d610001"]),
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


def test_a_reboot_leaves_nothing_of_ours_and_the_agent_captures_again_though_the_hub_is_gone(
    mesh: Mesh, old: BootedHost
) -> None:
    old.systemctl("enable", "nftables")
    mesh.hub_program.kill()
    try:
        old.power_off()
        old.boot()
        assert "meshagent" not in kernel(old)
        old.start_agent()
        wait_until(lambda: reaches(mesh, old), 20, "the mesh from last-known-good")
    finally:
        mesh.hub_program = mesh.hub.start_meshagent("hub", "run", log="hub")
        wait_until(lambda: mesh.hub.meshagent_json("hub", "hosts", check=False) is not None, 15)
