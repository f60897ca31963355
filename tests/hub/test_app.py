"""A whole hub on loopback, spoken to as agents and administrators do."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from meshagent.hub.app import run_hub
from meshagent.hub.settings import HubSettings
from meshagent.model.address import HostPort
from meshagent.model.errors import MeshagentError
from meshagent.model.identity import Identity
from meshagent.model.paths import Paths
from meshagent.protocol.announce import announcement_message
from meshagent.protocol.pb.istio_ca_pb2 import IstioCertificateRequest
from meshagent.protocol.pb.istio_nds_pb2 import NameTable
from meshagent.protocol.types import NDS
from meshagent.transport.channel import (
    announce_stream,
    create_certificate_call,
    delta_ads_stream,
    enroll_call,
    hub_channel,
)
from tests.fakes.eventually import eventually_async
from tests.hub.hosts import Newcomer, RunningHub, announced, announced_service, csr_pem, on_loop, running_hub

NODE = "sidecar~10.0.0.1~cache-1.default~default.svc.mesh.internal"


async def say(stream: Any, announcement: Any) -> Any:
    await stream.write(announcement_message(announcement))
    return await stream.read()


async def until(hub: RunningHub, method: str, check: Any) -> Any:
    answer: Any = None

    async def holds() -> bool:
        nonlocal answer
        answer = await hub.admin(method)
        return bool(check(answer))

    await eventually_async(holds)
    return answer


async def renew(hub: RunningHub, identity: Identity, **fields: Any) -> Any:
    async with hub.channel(identity) as channel:
        return await create_certificate_call(channel, IstioCertificateRequest(csr=csr_pem(), **fields))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@on_loop
async def test_a_host_joins_announces_renews_and_leaves(tmp_path: Path, address: str) -> None:
    async with running_hub(tmp_path, address=address) as hub:
        identity = await hub.join("cache-1", "cache")
        assert str(identity.spiffe_id) == "spiffe://mesh.internal/ns/default/sa/cache"
        async with hub.channel(identity) as channel:
            stream = announce_stream(channel)
            answer = await say(stream, announced(announced_service()))
            result = answer.services[0]
            assert result.accepted and result.host == "cache.default.mesh.internal"
            assert list(result.virtual_addresses) == ["240.240.0.1", "2001:2::1"]
            listed = await until(hub, "services", lambda a: a["services"])
            assert listed["services"][0]["endpoints"][0]["host"] == "cache-1"
            assert (await hub.admin("hosts"))["hosts"][0]["connected"]

            fresh = await renew(hub, identity)
            assert len(fresh.cert_chain) == 2 and fresh.cert_chain[-1] == identity.bundle_pem

            message = announcement_message(announced(generation=2, goodbye=True))
            message.leave = True
            await stream.write(message)
            assert (await stream.read()).generation == 2
        assert (await until(hub, "hosts", lambda a: not a["hosts"]))["hosts"] == []
        assert (await hub.admin("services"))["services"] == []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await renew(hub, identity)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        await hub.join("cache-1", "cache")  # its name is free again


@on_loop
async def test_what_one_host_announces_another_is_told_by_discovery(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        cache, web = await hub.join("cache-1", "cache"), await hub.join("web-1", "web")
        async with hub.channel(cache) as one, hub.channel(web) as two:
            stream = delta_ads_stream(two)
            metadata = {"NAMESPACE": "default", "SERVICE_ACCOUNT": "web"}
            node = {"id": NODE.replace("cache-1", "web-1"), "metadata": metadata}
            await stream.write(DeltaDiscoveryRequest(node=node, type_url=NDS))
            await say(announce_stream(one), announced(announced_service()))
            table = NameTable()
            async with asyncio.timeout(30):
                while "cache.default.mesh.internal" not in table.table:
                    answer = await stream.read()
                    for resource in answer.resources:
                        resource.resource.Unpack(table)
                    ack = {"type_url": answer.type_url, "response_nonce": answer.nonce}
                    await stream.write(DeltaDiscoveryRequest(**ack))
            assert "240.240.0.1" in table.table["cache.default.mesh.internal"].ips


@on_loop
async def test_a_restart_keeps_ca_hosts_addresses_and_endpoints(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        identity = await hub.join("cache-1", "cache")
        async with hub.channel(identity) as channel:
            await say(announce_stream(channel), announced(announced_service()))
            before = await until(hub, "services", lambda a: a["services"])
    async with running_hub(tmp_path) as hub:
        assert await hub.admin("services") == before
        host = (await hub.admin("hosts"))["hosts"][0]
        assert not host["connected"] and host["name"] == "cache-1"
        assert (await renew(hub, identity)).cert_chain[-1] == identity.bundle_pem
        async with hub.channel(identity) as channel:
            answer = await say(announce_stream(channel), announced(announced_service()))
            assert list(answer.services[0].virtual_addresses) == ["240.240.0.1", "2001:2::1"]


@on_loop
async def test_a_host_that_vanishes_leaves_discovery_after_the_grace(tmp_path: Path) -> None:
    async with running_hub(tmp_path, grace=0.1) as hub:
        identity = await hub.join("cache-1", "cache")
        async with hub.channel(identity) as channel:
            await say(announce_stream(channel), announced(announced_service()))
            await until(hub, "services", lambda a: a["services"])
        await until(hub, "services", lambda a: not a["services"])
        assert (await hub.admin("hosts"))["hosts"][0]["name"] == "cache-1"  # still enrolled


@on_loop
async def test_a_newer_stream_supersedes_the_older_one(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        identity = await hub.join("cache-1", "cache")
        async with hub.channel(identity) as first, hub.channel(identity) as second:
            older = announce_stream(first)
            await say(older, announced(announced_service()))
            await say(announce_stream(second), announced(announced_service("queue")))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await older.read()
            assert caught.value.code() is grpc.StatusCode.ABORTED
            listed = await until(hub, "services", lambda a: [s["name"] for s in a["services"]] == ["queue"])
            assert listed["services"][0]["endpoints"]


@on_loop
async def test_a_revoked_host_loses_its_streams_its_endpoints_and_its_certificates(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        identity = await hub.join("cache-1", "cache")
        async with hub.channel(identity) as channel:
            stream = announce_stream(channel)
            await say(stream, announced(announced_service()))
            await hub.admin("host.revoke", name="cache-1")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            first = DeltaDiscoveryRequest(node={"id": NODE})
            for again, message in ((announce_stream(channel), None), (delta_ads_stream(channel), first)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await again.write(message or announcement_message(announced()))
                    await again.read()
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert (await hub.admin("services"))["services"] == []


@on_loop
async def test_without_a_certificate_only_enrolment_is_served(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        pinned = await hub.pinned(await hub.token())
        channel = hub_channel(hub.address, roots_pem=pinned.root_pem, server_name=pinned.server_name)
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await create_certificate_call(channel, IstioCertificateRequest(csr=csr_pem()))
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            stream = announce_stream(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await say(stream, announced())
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"token_secret": "a" * 52}, "bad-token"),
        ({"token_id": "aaaaaaaaaaaa"}, "bad-signature"),
        ({"unix_ms": 1_000_000}, "clock-difference"),
        ({"csr_pem": "nonsense"}, "bad-signature"),
        ({"host_key_signature": b"nonsense"}, "bad-signature"),
        ({"host_key_pem": "nonsense"}, "bad-host-key"),
        ({"host_name": "Bad Name"}, "bad-name"),
        ({"host_name": "x" * 300}, "bad-request"),
        ({"boot_id": "\x1b[31m"}, "bad-request"),
    ],
)
@on_loop
async def test_a_refused_enrolment_has_a_code_burns_nothing_and_is_audited(
    tmp_path: Path, changes: dict[str, Any], code: str
) -> None:
    async with running_hub(tmp_path) as hub:
        token, newcomer = await hub.token(), Newcomer()
        with pytest.raises(MeshagentError) as caught:
            await hub.enroll(newcomer, token, **changes)
        assert caught.value.code == code
        assert (await hub.admin("audit"))["audit"][0]["outcome"] == code
        assert (await hub.enroll(newcomer, token)).host_name == "web-1"


def contents(root: Path) -> list[tuple[str, bytes]]:
    return [(file.name, file.read_bytes()) for file in root.rglob("*") if file.is_file()]


@on_loop
async def test_no_secret_reaches_disk_or_audit(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        token = await hub.token()
        await hub.enroll(Newcomer(), token)
        listed = str([await hub.admin("token.list"), await hub.admin("audit"), await hub.admin("hosts")])
        assert token.secret not in listed
    assert not [name for name, content in contents(tmp_path) if token.secret.encode() in content]


@on_loop
async def test_an_issued_certificate_is_for_seven_days_and_one_critical_uri(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        identity = await hub.join()
        leaf = x509.load_pem_x509_certificate(identity.chain_pem.encode())
        san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert san.critical and len(list(san.value)) == 1 and not list(leaf.subject)
        assert 7 * 86400 <= (identity.not_after - identity.not_before).total_seconds() <= 7 * 86400 + 300
        short = await renew(hub, identity, validity_duration=3600)
        leaf = x509.load_pem_x509_certificate(short.cert_chain[0].encode())
        assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds() == 3600 + 120
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await renew(hub, identity, validity_duration=10**9)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@on_loop
async def test_twenty_hosts_race_for_one_use_and_exactly_one_wins(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        token = await hub.token()
        racers = [Newcomer(f"web-{n}") for n in range(12)]
        outcomes = await asyncio.gather(*(hub.enroll(r, token) for r in racers), return_exceptions=True)
        won = [o for o in outcomes if not isinstance(o, BaseException)]
        lost = {o.code for o in outcomes if isinstance(o, MeshagentError)}
        assert len(won) == 1 and lost == {"token-used"}


@on_loop
async def test_too_many_tries_from_one_address_are_told_to_wait(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        token = await hub.token()
        pinned = await hub.pinned(token)
        channel = hub_channel(hub.address, roots_pem=pinned.root_pem, server_name=pinned.server_name)
        async with channel:
            codes = []
            for _ in range(25):
                with pytest.raises(MeshagentError) as caught:
                    await enroll_call(channel, Newcomer().request(token, token_secret="b" * 52))
                codes.append(caught.value.code)
        assert codes[:20] == ["bad-token"] * 20 and codes[-1] == "rate-limited"


def settings(root: Path, **changes: Any) -> HubSettings:
    return HubSettings(Paths(root), (HostPort("127.0.0.1", 0),), HostPort("127.0.0.1", 15012), **changes)


@on_loop
async def test_a_second_hub_on_the_same_root_is_refused(tmp_path: Path) -> None:
    async with running_hub(tmp_path):
        with pytest.raises(MeshagentError) as caught:
            await run_hub(settings(tmp_path), stop=asyncio.Event())
        assert caught.value.code == "already-running"


@on_loop
async def test_another_trust_domain_on_the_same_database_is_refused(tmp_path: Path) -> None:
    async with running_hub(tmp_path):
        pass
    with pytest.raises(MeshagentError) as caught:
        await run_hub(settings(tmp_path, trust_domain="other.example"), stop=asyncio.Event())
    assert caught.value.code == "trust-domain-changed"
