"""kill -9 of a hub under load: what it acknowledged is there after the restart. The seed is printed."""

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from meshagent.model.address import parse_host_port
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths
from meshagent.transport import local
from tests.fakes.eventually import eventually, eventually_async
from tests.hub.hosts import Newcomer, RunningHub, running_hub
from tests.ports import free_port

ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: killed}}
spec:
  hosts: [{name}.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 10.9.0.1, serviceAccount: many}}]
"""


class Load:
    """Changes, and what of them was acknowledged."""

    def __init__(self, hub: RunningHub) -> None:
        self.hub = hub
        self.tokens: set[str] = set()
        self.revoked_tokens: set[str] = set()
        self.entries: set[str] = set()
        self.hosts: set[str] = set()
        self.revoked_hosts: set[str] = set()

    async def tokens_come_and_go(self) -> None:
        while True:
            made = (await self.hub.admin("token.create", service_account="web"))["id"]
            self.tokens.add(made)
            if len(self.tokens) % 2:
                await self.hub.admin("token.revoke", id=made)
                self.revoked_tokens.add(made)

    async def resources_are_applied(self) -> None:
        for number in range(10_000):
            await self.hub.admin("resource.apply", text=ENTRY.format(name=f"e{number}"))
            self.entries.add(f"e{number}")

    async def hosts_join_and_are_revoked(self) -> None:
        for number in range(10_000):
            name = f"host-{number}"
            await self.hub.enroll(Newcomer(name), await self.hub.token("web"))
            self.hosts.add(name)
            if number % 2:
                await self.hub.admin("host.revoke", name=name)
                self.revoked_hosts.add(name)

    async def check(self, hub: RunningHub) -> None:
        tokens = {t["id"]: t["state"] for t in (await hub.admin("token.list"))["tokens"]}
        assert self.tokens <= tokens.keys()
        assert {t for t in self.revoked_tokens if tokens[t] != "revoked"} == set()
        found = (await hub.admin("resource.get", kind="serviceentry"))["resources"]
        assert self.entries <= {r["name"] for r in found}
        hosts = {h["name"] for h in (await hub.admin("hosts"))["hosts"]}
        assert not self.revoked_hosts & hosts and self.hosts - self.revoked_hosts <= hosts
        assert len(self.hosts) > 0 and len(self.tokens) > 10, "the load did nothing"


async def _until_killed(work: Any) -> None:
    try:
        await work
    except (MeshagentError, OSError, EOFError):
        return  # the hub is gone


def test_what_a_hub_acknowledged_under_load_survives_kill_9(tmp_path: Path) -> None:
    seed = os.environ.get("MESHAGENT_TEST_SEED") or str(random.SystemRandom().randrange(1 << 32))
    print(f"MESHAGENT_TEST_SEED={seed}")  # noqa: T201 - pytest shows it with a failure
    argv = [sys.executable, "-m", "meshagent.cli.entry", "--root", str(tmp_path), "hub", "run", "--http", "off"]
    with (tmp_path / "log").open("wb") as log:
        program = subprocess.Popen([*argv, "--listen", f"127.0.0.1:{free_port()}"], stdout=log, stderr=log)
    try:
        load = asyncio.run(_load_until_killed(tmp_path, program, random.Random(seed).uniform(0, 0.3)))
    finally:
        program.kill()
        program.wait()
    asyncio.run(_check_after_restart(tmp_path, load))


async def _load_until_killed(root: Path, program: "subprocess.Popen[bytes]", later: float) -> Load:
    load = Load(await _answering(root, program))
    works = (load.tokens_come_and_go(), load.resources_are_applied(), load.hosts_join_and_are_revoked())
    running = [asyncio.create_task(_until_killed(work)) for work in works]
    await eventually(lambda: len(load.hosts) >= 4 and load.entries and len(load.tokens) > 10, 60)
    await asyncio.sleep(later)  # the moment is what is tested
    program.kill()
    await asyncio.gather(*running)
    return load


async def _check_after_restart(root: Path, load: Load) -> None:
    Paths(root).hub_socket.unlink()  # left by the killed one; the helper below takes it for an answer
    async with running_hub(root) as again:
        await load.check(again)


async def _answering(root: Path, program: "subprocess.Popen[bytes]") -> RunningHub:
    """The hub of another process, once it answers."""
    paths = Paths(root)

    async def answers() -> bool:
        assert program.poll() is None, (root / "log").read_text()
        return await asyncio.to_thread(paths.hub_socket.exists)

    await eventually_async(answers, 60)
    status = await asyncio.to_thread(local.call, paths.hub_socket, "status", {})
    return RunningHub(paths, parse_host_port(status["listen"][0]), None, asyncio.Event())  # type: ignore[arg-type]
