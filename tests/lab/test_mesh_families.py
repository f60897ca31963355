"""Hosts with other address families than their peers, and one that gains and loses IPv6 while it serves."""

import contextlib
import sys
from pathlib import Path

import pytest

from meshagent.lab import Host, recipes, wait_until
from tests.lab.mesh import Mesh, open_mesh

pytestmark = pytest.mark.root

_REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_host_whose_kernel_has_no_ipv6_reaches_services_of_hosts_that_have_it(envoy: Path) -> None:
    """Envoy there refuses a whole endpoint set or listener for one IPv6 address in it."""
    with open_mesh((4, 6)) as mesh:
        web, cache = mesh.lab.host("web"), mesh.lab.host("cache")
        web.run(["sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1"])
        recipes.redis(cache)
        web.meshagent(*mesh.token("web"))
        mesh.join(cache, ("cache", 6379, "redis"))
        argv = [sys.executable, "-m", "tests.lab.without_ipv6", *web.meshagent_argv("run")]
        mesh.agents["web"] = web.popen(argv, log="agent", cwd=str(_REPOSITORY))
        mesh.members["web"], mesh.offers["web"] = web, ()
        mesh.settle()
        assert mesh.redis(web, "cache") == "PONG"
        assert mesh.conditions(web) == []
        wait_until(lambda: all(ip.startswith("240.240.") for ip in mesh.resolve(web, "cache.default.mesh.internal")))
        web.meshagent("leave", "--accept", "mesh-in-use")


def listeners(mesh: Mesh, host: Host) -> dict[str, str]:
    """Name -> when Envoy took it, of the mesh's listeners that are in use."""
    dump = host.meshagent_json("proxy", "config", "--section", "listeners")["configs"][0]["dynamic_listeners"]
    active = {each["name"]: each["active_state"]["last_updated"] for each in dump if "active_state" in each}
    return {name: when for name, when in active.items() if name.startswith("240.240.")}


def test_a_host_that_gains_and_loses_ipv6_keeps_its_listeners_and_with_them_its_connections(envoy: Path) -> None:
    with open_mesh((4, 6)) as mesh:
        web, cache = mesh.lab.host("web"), mesh.lab.host("cache")
        ipv6 = next(address for address in web.addresses if ":" in address)
        web.run(["ip", "addr", "del", f"{ipv6}/64", "dev", "eth0"])
        recipes.redis(cache)
        mesh.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        before = listeners(mesh, web)
        assert before
        with contextlib.closing(mesh.busy(web, "cache")) as connection:
            assert mesh.resolve(web, "cache.default.mesh.internal") == ["240.240.0.1"]
            web.run(["ip", "addr", "add", f"{ipv6}/64", "dev", "eth0", "nodad"])
            wait_until(
                lambda: len(mesh.resolve(web, "cache.default.mesh.internal")) == 2, 10, "answers of both families"
            )
            virtual = next(ip for ip in mesh.resolve(web, "cache.default.mesh.internal") if ":" in ip)
            wait_until(
                lambda: web.run(["redis-cli", "-h", virtual, "ping"], check=False).stdout == "PONG\n", 10, "IPv6"
            )
            web.run(["ip", "addr", "del", f"{ipv6}/64", "dev", "eth0"])
            wait_until(lambda: len(mesh.resolve(web, "cache.default.mesh.internal")) == 1, 10, "IPv4 alone")
            assert listeners(mesh, web) == before, "another address would make a new listener, and drain the old one"
            connection.goes_on()
