"""Envoy dies: it is back at once, and what happened is told."""

import os
import signal
import time
from pathlib import Path

import pytest

from meshagent.lab import recipes, wait_until
from meshagent.lab.waiting import patience
from meshagent.machine.segments import segment
from tests.lab.mesh import Mesh, open_mesh

pytestmark = pytest.mark.root


def test_a_killed_proxy_is_replaced_at_once_and_counted(envoy: Path) -> None:
    with open_mesh() as mesh:
        web, cache = mesh.lab.host("web"), mesh.lab.host("cache")
        recipes.redis(cache)
        mesh.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        address = mesh.resolve(web, "cache.default.mesh.internal")[0]
        old = mesh.status(web)["proxy"]["pid"]
        os.kill(old, signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: speaks(mesh, address), 5, "a new connection through the mesh", interval=0.005)
        assert time.monotonic() - killed < 1.5 * patience()
        now = wait_until(lambda: (s := mesh.status(web))["proxy"]["ready"] and s, 3)
        assert now["proxy"]["pid"] not in (0, old)
        assert now["proxy"]["restarts"] == 1
        wait_until(lambda: mesh.status(web)["capture"]["bypassed_since"] is None, 4)
        assert mesh.conditions(web) == []
        memory = segment(mesh.proxy_record(web)["data"]["base_id"])
        assert memory.exists()
    assert not memory.exists(), "nobody left the mesh, but the lab is over"


def speaks(mesh: Mesh, address: str) -> bool:
    with mesh.members["web"].connect(address, 6379, timeout=1) as client:
        client.sendall(b"PING\r\n")
        return client.recv(7) == b"+PONG\r\n"
