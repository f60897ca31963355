"""The administrators' socket of a running hub: shapes, mistakes, all or nothing."""

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest

from meshagent.model.errors import MeshagentError
from meshagent.protocol.announce import announcement_message
from meshagent.transport.channel import announce_stream
from tests.fakes.eventually import eventually_async
from tests.hub.hosts import RunningHub, announced, announced_service, on_loop, running_hub

ENTRY = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: legacy}
spec:
  hosts: [cache.default.mesh.internal]
  addresses: [10.9.9.9]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 6379, name: redis, protocol: REDIS}]
  workloadSelector: {labels: {app: cache}}
"""
STRICT = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
"""


async def code_of(hub: RunningHub, method: str, **params: Any) -> str:
    with pytest.raises(MeshagentError) as caught:
        await hub.admin(method, **params)
    return caught.value.code


@on_loop
async def test_a_token_is_shown_once_and_listed_without_its_secret(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        made = await hub.admin(
            "token.create", service_account="web", ttl="15m", uses=2, cidr=None, host=None, services=[]
        )
        assert set(made) == {"id", "token", "command", "expires_at", "uses"}
        assert made["command"] == f"meshagent enroll 127.0.0.1:15012 {made['token']}"
        (listed,) = (await hub.admin("token.list"))["tokens"]
        assert listed["state"] == "valid" and made["token"].rpartition(".")[2] not in str(listed)
        await hub.admin("token.revoke", id=made["id"])
        assert (await hub.admin("token.list"))["tokens"][0]["state"] == "revoked"


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("token.create", {}, "bad-parameter"),
        ("token.create", {"service_account": "web", "ttl": "soon"}, "bad-parameter"),
        ("token.create", {"service_account": "web", "uses": True}, "bad-parameter"),
        ("token.create", {"service_account": "web", "cidr": ["x"]}, "bad-cidr"),
        ("token.create", {"service_account": "web", "tll": 5}, "unknown-parameter"),
        ("token.revoke", {"id": "nothing"}, "not-found"),
        ("host.revoke", {"name": "nobody"}, "not-found"),
        ("resource.delete", {"kind": "se", "name": "none"}, "not-found"),
        ("resource.get", {"kind": "pods"}, "unknown-kind"),
        ("resource.get", {"kind": "se", "name": "none"}, "not-found"),
        ("resource.apply", {"name": "x"}, "bad-parameter"),
        ("resource.apply", {"text": "a: &x 1"}, "invalid-resources"),
        ("status", {"x": 1}, "unknown-parameter"),
        ("nonsense", {}, "unknown-method"),
    ],
)
@on_loop
async def test_a_wrong_request_is_refused_by_name(
    tmp_path: Path, method: str, params: dict[str, Any], code: str
) -> None:
    async with running_hub(tmp_path) as hub:
        assert await code_of(hub, method, **params) == code


@on_loop
async def test_resources_are_applied_shown_changed_and_deleted(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        both = ENTRY + "---\n" + STRICT
        answer = await hub.admin("resource.apply", name="mesh.yaml", text=both)
        assert [a["action"] for a in answer["applied"]] == ["created", "created"] and answer["warnings"] == []
        again = await hub.admin("resource.apply", text=both.replace("mode: STRICT", "mode: PERMISSIVE"))
        assert [a["action"] for a in again["applied"]] == ["unchanged", "changed"]
        (shown,) = (await hub.admin("resource.get", kind="pa", name="strict"))["resources"]
        assert shown["version"] == 2 and "mode: PERMISSIVE" in shown["yaml"]
        assert (await hub.admin("resource.apply", text=shown["yaml"]))["applied"][0]["action"] == "unchanged"
        assert (await hub.admin("services"))["services"][0]["claimed"] == ["10.9.9.9"]
        await hub.admin("resource.delete", kind="ServiceEntry", name="legacy")
        assert (await hub.admin("resource.get", kind="serviceentry"))["resources"] == []

        async def gone() -> bool:
            return not (await hub.admin("services"))["services"]

        await eventually_async(gone)


@on_loop
async def test_with_one_error_nothing_is_applied(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        with pytest.raises(MeshagentError) as caught:
            await hub.admin("resource.apply", name="m.yaml", text=ENTRY + "---\n" + STRICT.replace("STRICT", "DISABLE"))
        assert "m.yaml:15: spec.mtls.mode" in caught.value.message
        assert (await hub.admin("resource.get", kind="se"))["resources"] == []
        found = await hub.admin("resource.validate", text=ENTRY.replace("MESH_INTERNAL", "MESH_EXTERNAL"))
        assert found["valid"] and "without mutual TLS" in found["warnings"][0]


@on_loop
async def test_applied_resources_survive_a_restart(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        await hub.admin("resource.apply", text=ENTRY)
    async with running_hub(tmp_path) as hub:
        (service,) = (await hub.admin("services"))["services"]
        assert service["host"] == "cache.default.mesh.internal" and service["addresses"][0] == "240.240.0.1"


@on_loop
async def test_hosts_and_services_have_the_shapes_of_the_contract(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        identity = await hub.join("cache-1", "cache")
        async with hub.channel(identity) as channel:
            stream = announce_stream(channel)
            await stream.write(announcement_message(announced(announced_service(), envoy_version="1.40.0")))
            await stream.read()
            (host,) = (await hub.admin("hosts"))["hosts"]
            wanted = {"name", "spiffe_id", "address", "connected", "last_seen", "agent_version", "envoy_version"}
            assert wanted | {"posture", "conditions"} <= set(host)
            assert host["envoy_version"] == "1.40.0" and host["posture"] == "permissive" and host["connected"]
        status = await hub.admin("status")
        assert status["ready"] and status["hosts"] == 1
        assert (await hub.admin("ca.status"))["certificate"].startswith("-----BEGIN CERTIFICATE-----")
        assert {a["action"] for a in (await hub.admin("audit"))["audit"]} == {"enroll", "token-create"}


@on_loop
async def test_the_socket_is_closed_to_others(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        mode = stat.S_IMODE((await asyncio.to_thread(hub.paths.hub_socket.stat)).st_mode)
        assert mode in (0o600, 0o660)
    assert not hub.paths.hub_socket.exists()
