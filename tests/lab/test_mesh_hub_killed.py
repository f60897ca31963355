"""kill -9 of the hub in the middle of anything: what it acknowledged stays, what it didn't can simply be asked again.

The moments are random; the seed is printed and ``MESHAGENT_TEST_SEED`` repeats one.
"""

import json
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from meshagent.lab import Host, Program, recipes, wait_until
from meshagent.lab.waiting import patience
from tests.lab.mesh import Mesh, open_mesh, took, wait_hub

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("hub-killed")]

#: Seconds of a test's rounds, beside its last checks.
ROUNDS = 3.0


class Fate:
    """Kills the hub at random moments, starts it again, and looks whether it still makes sense."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        seed = os.environ.get("MESHAGENT_TEST_SEED") or str(random.SystemRandom().randrange(1 << 32))
        print(f"MESHAGENT_TEST_SEED={seed}")  # noqa: T201 - pytest shows it with a failure
        self.dice = random.Random(seed)
        self._killed = 0

    def rounds(self) -> Iterator[int]:
        """Numbers, at least two, until the time is over."""
        end = time.monotonic() + ROUNDS
        for number in range(1000):
            if number >= 2 and time.monotonic() > end:
                return
            yield number

    def strikes(self, host: Host, argv: Sequence[str], usual: float) -> Program:
        """Run ``meshagent`` on ``host``, kill the hub in the later half of ``usual`` seconds; the ended command."""
        self._killed += 1
        program = host.popen(host.meshagent_argv(*argv), log=f"struck-{self._killed}")
        time.sleep(self.dice.uniform(0.4, 1.05) * usual)  # the moment itself is what is tested
        self.mesh.hub_program.kill()
        assert program.wait(20) in (0, 1, 4), program.text()
        assert "Traceback" not in program.text()
        return program

    def hub_comes_back(self) -> None:
        self.mesh.hub_program = self.mesh.hub.start_meshagent("hub", "run", log="hub")
        wait_hub(self.mesh)
        self._makes_sense()

    def _makes_sense(self) -> None:
        names = [row["name"] for row in hosts(self.mesh)]
        assert len(names) == len(set(names)), names
        assert {"web", "cache"} <= set(names)
        for token in tokens(self.mesh):
            assert token["used"] == len(token["hosts"]) <= token["uses"], token
        for service in self.mesh.hub.meshagent_json("hub", "services")["services"]:
            assert {e["host"] for e in service["endpoints"]} <= {*names, ""}, service

    def everybody_is_back(self) -> None:
        wait_until(
            lambda: {r["name"] for r in hosts(self.mesh) if r["connected"]} >= {"web", "cache"}, 15, "reconnects"
        )
        self.mesh.settle()


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_mesh((4,)) as opened:
        web, cache = opened.lab.host("web"), opened.lab.host("cache")
        opened.lab.host("late")
        recipes.redis(cache)
        recipes.redis(cache, 6380, bind="127.0.0.1")
        opened.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        yield opened


@pytest.fixture
def fate(mesh: Mesh) -> Iterator[Fate]:
    yield Fate(mesh)
    if not mesh.hub_program.alive:
        mesh.hub_program = mesh.hub.start_meshagent("hub", "run", log="hub")
        wait_hub(mesh)


def hosts(mesh: Mesh) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mesh.hub.meshagent_json("hub", "hosts")["hosts"]
    return found


def tokens(mesh: Mesh) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = mesh.hub.meshagent_json("hub", "token", "list")["tokens"]
    return found


def test_a_token_is_not_burnt_by_a_hub_that_dies_while_a_host_enrols(mesh: Mesh, fate: Fate) -> None:
    late = mesh.lab.hosts["late"]
    line = mesh.token("late")
    usual = took(lambda: late.meshagent(*line))
    late.meshagent("leave", "--purge")
    for number in fate.rounds():
        line, name = mesh.token("late"), f"late{number}"
        line += ["--name", name]
        first = fate.strikes(late, line, usual)
        assert first.popen.returncode == 0 or "\nhint: " in first.text(), first.text()
        fate.hub_comes_back()
        late.meshagent(*line)
        assert [row["name"] for row in hosts(mesh)].count(name) == 1
        spent = next(token for token in tokens(mesh) if token["id"] in line[2])
        assert (spent["used"], [use["name"] for use in spent["hosts"]]) == (1, [name])
        assert late.meshagent_json("leave", "--purge")["warnings"] == []
        assert name not in [row["name"] for row in hosts(mesh)]
    fate.everybody_is_back()


ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: e{number}, namespace: killed}}
spec:
  hosts: [e{number}.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 10.9.{generation}.{number}, serviceAccount: many}}]
"""
ENTRIES = 20


def stored(mesh: Mesh) -> dict[str, int]:
    """Name of an entry -> its generation."""
    found = mesh.hub.meshagent_json("hub", "get", "serviceentry", "--namespace", "killed")["resources"]
    return {r["name"]: int(re.search(r"10\.9\.(\d+)\.", r["yaml"])[1]) for r in found}  # type: ignore[index]


def apply(mesh: Mesh, generation: int) -> list[str]:
    """The command line that applies a generation of all entries."""
    file = mesh.hub.private / f"generation-{generation}.yaml"
    file.write_text("---".join(ENTRY.format(number=n, generation=generation) for n in range(1, ENTRIES + 1)))
    return ["hub", "apply", "-f", str(file)]


def test_what_was_applied_or_deleted_is_there_whole_or_not_at_all(mesh: Mesh, fate: Fate) -> None:
    names = [f"e{n}" for n in range(1, ENTRIES + 1)]
    usual, before = took(lambda: mesh.hub.meshagent(*apply(mesh, 0))), dict.fromkeys(names, 0)
    short = took(lambda: stored(mesh))
    for number in fate.rounds():
        applied = fate.strikes(mesh.hub, apply(mesh, number + 1), usual)
        fate.hub_comes_back()
        after = dict.fromkeys(names, number + 1)
        assert stored(mesh) in ((after,) if applied.popen.returncode == 0 else (before, after)), applied.text()
        assert applied.popen.returncode == 0 or "\nhint: " in applied.text(), applied.text()

        before = stored(mesh)
        gone = fate.dice.choice(sorted(before))
        deleted = fate.strikes(mesh.hub, ["hub", "delete", "serviceentry", gone, "--namespace", "killed"], short)
        fate.hub_comes_back()
        without = {name: generation for name, generation in before.items() if name != gone}
        assert stored(mesh) in ((without,) if deleted.popen.returncode == 0 else (before, without)), deleted.text()
        before = stored(mesh)
    fate.everybody_is_back()


def test_certificates_are_renewed_or_the_error_has_a_hint_and_no_connection_notices(mesh: Mesh, fate: Fate) -> None:
    web, cache = mesh.members["web"], mesh.members["cache"]
    usual = took(lambda: web.meshagent("certs", "rotate"))
    with mesh.busy(web, "cache") as busy:
        for _ in fate.rounds():
            host = fate.dice.choice([web, cache])
            before = host.meshagent_json("certs")["serial"]
            rotated = fate.strikes(host, ["certs", "rotate", "-o", "json"], usual)
            answer = json.loads(rotated.text())
            if rotated.popen.returncode == 0:
                assert answer["serial"] != before
                assert host.meshagent_json("certs")["serial"] == answer["serial"]
            else:
                assert answer["error"]["hint"], answer
                assert host.meshagent_json("certs")["serial"] == before
            fate.hub_comes_back()
            fate.everybody_is_back()
            assert host.meshagent_json("certs", "rotate")["serial"] != before
            busy.goes_on()
        assert mesh.redis(web, "cache") == "PONG"
    assert busy.slowest < 0.5 * patience()


def test_a_service_declared_while_the_hub_dies_is_announced_when_it_is_back(mesh: Mesh, fate: Fate) -> None:
    web, cache = mesh.members["web"], mesh.members["cache"]
    for number in fate.rounds():
        name = f"extra{number}"
        line = ["service", "add", name, "--port", "6379", "--target-port", "6380", "--protocol", "redis"]
        assert fate.strikes(cache, line, 2.0).wait() == 0  # says so to the hub within 2 s
        fate.hub_comes_back()
        wait_until(lambda name=name: mesh.redis(web, name, timeout=2) == "PONG", 15, name)  # type: ignore[misc]
        assert f"{name}.default.mesh.internal" in [
            row["host"] for row in mesh.hub.meshagent_json("hub", "services")["services"]
        ]
        cache.meshagent("service", "remove", name)
    fate.everybody_is_back()
