"""Our delta ADS as a real Envoy takes it: first configuration, make before break, re-warming, refusal, reconnect."""

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import Node

from meshagent.protocol.entry import Snapshot
from meshagent.protocol.publisher import Verdict
from meshagent.protocol.types import CDS, EDS, LDS
from meshagent.runtime.latest import Latest
from meshagent.transport.ads_server import AdsServer, Ending
from meshagent.transport.grpc_server import Call, add_methods, bind_unix, local_peer, new_server
from meshagent.transport.unix import Access, remove
from tests.fakes.envoy_resources import eds_cluster, endpoints, entry, tcp_listener
from tests.ports import free_port

pytestmark = pytest.mark.root


class Control:
    """Every stream follows one snapshot; verdicts are noted."""

    def __init__(self) -> None:
        self.snapshot: Latest[Snapshot] = Latest({})
        self.ended: Latest[Ending | None] = Latest(None)
        self.verdicts: list[Verdict] = []

    async def open(self, _node: Node, _call: Call) -> "Control":
        return self

    def on_verdict(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def on_subscription(self, type_url: str, wildcard: bool, names: frozenset[str]) -> None: ...

    async def close(self) -> None: ...

    @contextlib.asynccontextmanager
    async def serving(self, path: Path) -> AsyncIterator[None]:
        server = new_server()
        add_methods(server, AdsServer(self.open).handlers(), local_peer)
        made = bind_unix(server, path, Access())
        await server.start()
        try:
            yield
        finally:
            await server.stop(0)
            remove(path, made)


def bootstrap(directory: Path) -> dict[str, Any]:
    service = {"envoy_grpc": {"cluster_name": "x"}}
    ads = {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [service]}
    pipe = {"endpoint": {"address": {"pipe": {"path": str(directory / "xds.sock")}}}}
    http2 = {"explicit_http_config": {"http2_protocol_options": {}}}
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    x = {
        "name": "x",
        "load_assignment": {"cluster_name": "x", "endpoints": [{"lb_endpoints": [pipe]}]},
        "typed_extension_protocol_options": {kind: {"@type": f"type.googleapis.com/{kind}", **http2}},
    }
    here = {"resource_api_version": "V3", "ads": {}}
    return {
        "node": {"id": "n", "cluster": "c"},
        "admin": {"address": {"pipe": {"path": str(directory / "admin.sock")}}},
        "dynamic_resources": {"ads_config": ads, "cds_config": here, "lds_config": here},
        "static_resources": {"clusters": [x]},
    }


@contextlib.asynccontextmanager
async def running(envoy: Path, directory: Path) -> AsyncIterator[None]:
    config = json.dumps(bootstrap(directory))
    arguments = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "off", "--config-yaml", config)
    process = await asyncio.create_subprocess_exec(str(envoy), *arguments)
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def admin(directory: Path, path: str) -> str:
    try:
        reader, writer = await asyncio.open_unix_connection(str(directory / "admin.sock"))
    except OSError:
        return ""
    writer.write(f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    return answer


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - Envoy has no event to wait for
            await asyncio.sleep(0.01)


async def clusters_at_rest(directory: Path, updates: int) -> bool:
    stats = await admin(directory, "/stats?filter=cluster_manager")
    return "warming_clusters: 0" in stats and f"cluster_modified: {updates}" in stats


def port_of(port: int) -> Callable[[], Awaitable[bool]]:
    async def answers() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    return answers


def snapshot(port: int, target: int, connect_seconds: int = 1, **extra: Any) -> Snapshot:
    return {
        CDS: {"a": entry(eds_cluster("a", connect_seconds))},
        EDS: {"a": entry(endpoints("a", target))},
        LDS: {"l": entry(tcp_listener("l", port, "a")), **extra},
    }


def test_a_real_envoy_is_configured_rewarmed_refuses_alone_and_reconnects(envoy: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        port, second, control = free_port(), free_port(), Control()
        control.snapshot.set(snapshot(port, 9))
        async with running(envoy, tmp_path):
            async with control.serving(tmp_path / "xds.sock"):
                await until(port_of(port))
                for type_url in (CDS, EDS, LDS):
                    await until(functools.partial(_heard, control, type_url))

                # a changed cluster must be in use at once, not after Envoy's 15 s wait for its endpoints
                control.snapshot.set(snapshot(port, 9, connect_seconds=2))
                await until(lambda: clusters_at_rest(tmp_path, 1), 5)

                bad = entry(tcp_listener("bad", port, "a", address="not an address"))
                good = entry(tcp_listener("good", second, "a"))
                control.verdicts.clear()
                control.snapshot.set(snapshot(port, 9, connect_seconds=2, bad=bad, good=good))
                await until(port_of(second))
                await until(lambda: _accepted(control, "good"))
                errors = [v.error for v in control.verdicts if v.error]
                assert len(errors) == 1 and "bad" in errors[0]

            # the server is gone, something changes, it is back: only the difference goes over the wire
            control.verdicts.clear()
            control.snapshot.set({**snapshot(port, 9, connect_seconds=2), EDS: {"a": entry(endpoints("a", 10))}})
            async with control.serving(tmp_path / "xds.sock"):
                await until(functools.partial(_heard, control, LDS))
                assert await port_of(port)()
                changed = {name for v in control.verdicts for name in v.resources}
                removed = {name for v in control.verdicts for name in v.removed}
                assert (changed, removed) == ({"a"}, {"good"})
                assert all(v.type_url == EDS for v in control.verdicts if v.resources)

    asyncio.run(scenario())


async def _accepted(control: Control, name: str) -> bool:
    return any(name in v.resources and not v.error for v in control.verdicts)


async def _heard(control: Control, type_url: str) -> bool:
    return any(v.type_url == type_url for v in control.verdicts)
