"""Every command's JSON, from a real mesh, against the contract."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli import shapes
from tests.cli.conftest import Mesh

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cli-mesh")]

ON_THE_HOST = {
    "status": shapes.STATUS,
    "peers": shapes.PEERS,
    "plan": shapes.PLAN,
    "certs": shapes.CERTS,
    "certs rotate": shapes.CERTS,
    "posture": shapes.POSTURE,
    "confirm": shapes.CONFIRM,
    "service list": shapes.SERVICE_LIST,
    "capture show": shapes.CAPTURE_SHOW,
    "capture verify": shapes.CAPTURE_VERIFY,
    "proxy show": shapes.PROXY_SHOW,
    "proxy config": shapes.PROXY_CONFIG,
    "proxy clusters": shapes.PROXY_CLUSTERS,
    "proxy log-level": shapes.PROXY_LOG_LEVEL,
    "capture off": shapes.CAPTURE_SWITCH,
    "capture on": shapes.CAPTURE_SWITCH,
}
ON_THE_HUB = {
    "hub status": shapes.HUB_STATUS,
    "hub backup /tmp/hub.backup": shapes.BACKUP,
    "hub hosts": shapes.HOSTS,
    "hub services": shapes.SERVICES,
    "hub audit": shapes.AUDIT,
    "hub ca status": shapes.CA,
    "hub token list": shapes.TOKENS,
    "hub token create --service-account x": shapes.TOKEN,
}


@pytest.mark.parametrize("line", ON_THE_HOST)
def test_an_answer_on_the_host_has_the_shape_of_the_contract(mesh: Mesh, line: str) -> None:
    assert not shapes.problems(mesh.db.meshagent_json(*line.split()), ON_THE_HOST[line])


@pytest.mark.parametrize("line", ON_THE_HUB)
def test_an_answer_of_the_hub_has_the_shape_of_the_contract(mesh: Mesh, line: str) -> None:
    assert not shapes.problems(mesh.hub.meshagent_json(*line.split()), ON_THE_HUB[line])


def test_enroll_again_and_service_edits_have_the_shape_of_the_contract(mesh: Mesh) -> None:
    assert not shapes.problems(mesh.enrol(mesh.db), shapes.ENROLL)
    added = mesh.db.meshagent_json("service", "add", "shaped", "--port", "6379")
    removed = mesh.db.meshagent_json("service", "remove", "shaped")
    assert not shapes.problems(added, shapes.SERVICE_EDIT) + shapes.problems(removed, shapes.SERVICE_EDIT)


POLICY = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: shaped, namespace: elsewhere}
spec: {mtls: {mode: PERMISSIVE}}
"""


def test_resources_have_the_shape_of_the_contract(mesh: Mesh) -> None:
    def hub(*words: str) -> Any:
        done = mesh.hub.meshagent("hub", *words, "-o", "json", input=POLICY)
        return json.loads(done.stdout)

    where = ("peerauthentication", "shaped", "--namespace", "elsewhere")
    checks: list[tuple[tuple[str, ...], Any]] = [
        (("validate", "-f", "-"), shapes.VALIDATE),
        (("apply", "-f", "-"), shapes.APPLY),
        (("get", *where), shapes.RESOURCES),
        (("delete", *where), shapes.OUTCOME),
    ]
    for words, shape in checks:
        assert not shapes.problems(hub(*words), shape)


def test_not_enrolled_is_exit_3_and_says_so_in_json(mesh: Mesh) -> None:
    done = mesh.late.meshagent("--root", "/run/nowhere", "status", "-o", "json", check=False)
    assert (done.returncode, done.stdout) == (3, '{"enrolled": false}\n')


def test_the_document_promises_nothing_that_the_checked_shapes_do_not_hold() -> None:
    documented = shapes.documented_keys(Path("docs/cli.md").read_text(encoding="utf-8"))
    assert documented.keys() - {"demo"} == shapes.DOCUMENTED.keys()
    missing = {name: documented[name] - shapes.keys_of(shape) for name, shape in shapes.DOCUMENTED.items()}
    assert not {name: keys for name, keys in missing.items() if keys}


def test_the_plan_of_a_running_host_does_not_mistake_our_own_proxy_for_a_stranger(mesh: Mesh) -> None:
    planned = mesh.db.meshagent_json("plan")
    assert not [line for line in planned["warnings"] if "15008" in line]
    assert planned["changes"] == ["replaces table inet meshagent by the rules below, in one transaction"]
