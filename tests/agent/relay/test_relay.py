"""The relay between a control plane made of the real publisher and a real Envoy."""

import asyncio
from dataclasses import dataclass

import pytest

from meshagent.agent.relay.rejections import CONDITION
from meshagent.model.address import MeshAddress, parse_ip
from meshagent.model.paths import Paths
from meshagent.protocol.entry import Entry, Snapshot
from meshagent.protocol.types import CDS, EDS, LDS, NDS
from tests.agent.envoy.side import GATE, Side, own_root
from tests.agent.envoy.test_process import echo_config, echo_server, echoed
from tests.fakes.control_plane import FakeControlPlane
from tests.fakes.envoy_resources import eds_cluster, endpoints, entry, gate, names, tcp_listener
from tests.fakes.eventually import eventually

pytestmark = pytest.mark.root


@dataclass
class Mesh:
    """A side with a ready Envoy and an echo service behind listener ``in`` on 18080."""

    side: Side
    plane: FakeControlPlane
    port: int

    def publish(self, **changes: dict[str, Entry]) -> None:
        kinds = {"clusters": CDS, "endpoints": EDS, "listeners": LDS, "names": NDS}
        merged: Snapshot = dict(self.plane.snapshot)
        for kind, entries in changes.items():
            merged = {**merged, kinds[kind]: {**merged.get(kinds[kind], {}), **entries}}
        self.plane.publish(merged)

    @property
    def refused(self) -> set[str]:
        return {key for code, key in self.side.conditions.held if code == CONDITION}


def run(story) -> None:  # type: ignore[no-untyped-def]
    async def told(paths: Paths) -> None:
        server = await echo_server()
        port = server.sockets[0].getsockname()[1]
        plane = FakeControlPlane(echo_config(port))
        async with Side(paths, plane).running() as side:
            await side.ready()
            await story(Mesh(side, plane, port))
        server.close()

    with own_root() as paths:
        asyncio.run(told(paths))


def bad_listener(name: str, port: int) -> Entry:
    """Envoy has no such filter."""
    listener = tcp_listener(name, port, "app")
    listener.filter_chains[0].filters[0].typed_config.type_url = "type.googleapis.com/istio.metadata_exchange"
    return entry(listener)


def invalid_cluster(name: str) -> Entry:
    """A time-out of zero fails the validation of the message itself: Envoy names nobody and applies nothing."""
    return entry(eds_cluster(name, connect_seconds=0))


def test_a_refused_listener_is_named_upstream_and_does_not_hold_up_the_others() -> None:
    async def story(mesh: Mesh) -> None:
        good = entry(tcp_listener("good", 18081, "app"))
        mesh.publish(listeners={"bad": bad_listener("bad", 18082), "good": good})
        await eventually(lambda: mesh.refused == {"Listener/bad"})
        assert await echoed(18081) == b"hello"
        await eventually(lambda: any(v.error for v in mesh.plane.verdicts))
        said = [v.error for v in mesh.plane.verdicts if v.error]
        assert "bad: " in said[0]
        assert "good: " not in said[0]
        assert set(mesh.side.subscriber.resources[LDS]) == {"in", "good"}

        mesh.publish(listeners={"bad": entry(tcp_listener("bad", 18082, "app"))})
        await eventually(lambda: not mesh.refused)
        assert await echoed(18082) == b"hello"

    run(story)


def test_a_listener_whose_new_version_is_refused_goes_on_in_its_previous_one() -> None:
    async def story(mesh: Mesh) -> None:
        mesh.publish(listeners={"in": bad_listener("in", 18080)})
        await eventually(lambda: mesh.refused == {"Listener/in"})
        assert await echoed() == b"hello"
        assert "previous one stays" in mesh.side.conditions.held[CONDITION, "Listener/in"]

    run(story)


def test_among_many_clusters_the_one_that_envoy_does_not_name_is_found_by_trials() -> None:
    async def story(mesh: Mesh) -> None:
        clusters = {f"c{i}": entry(eds_cluster(f"c{i}")) for i in range(20)}
        clusters["c13"] = invalid_cluster("c13")
        mesh.publish(clusters=clusters, endpoints={name: entry(endpoints(name, mesh.port)) for name in clusters})
        await eventually(lambda: mesh.refused == {"Cluster/c13"}, 10)
        await eventually(lambda: len(mesh.side.subscriber.resources[CDS]) == 20, 10)
        assert "c13" not in mesh.side.subscriber.resources[CDS]
        active = {c["name"] for c in (await mesh.side.proxy.admin.clusters())["cluster_statuses"]}
        assert {f"c{i}" for i in range(20) if i != 13} <= active
        assert await echoed() == b"hello"

    run(story)


def test_a_bad_endpoint_set_is_refused_alone_and_the_others_of_the_response_arrive() -> None:
    async def story(mesh: Mesh) -> None:
        clusters = {name: entry(eds_cluster(name)) for name in ("x", "y", "z")}
        listeners = {name: entry(tcp_listener(name, 18090 + i, name)) for i, name in enumerate("xyz")}
        sets = {name: entry(endpoints(name, mesh.port)) for name in "xz"}
        broken = endpoints("y", mesh.port)
        broken.endpoints[0].priority = 200  # above 128: fails validation
        mesh.publish(clusters=clusters, endpoints={**sets, "y": entry(broken)}, listeners=listeners)
        await eventually(lambda: mesh.refused == {"ClusterLoadAssignment/y"}, 10)
        await eventually(lambda: set(mesh.side.subscriber.resources[LDS]) == {"in", *"xyz"}, 10)
        assert await echoed(18090) == b"hello"
        assert await echoed(18092) == b"hello"

    run(story)


def test_addresses_are_captured_only_once_envoy_serves_them_and_names_follow_after() -> None:
    async def story(mesh: Mesh) -> None:
        taps = mesh.side.relay.taps
        assert taps.addresses.value == frozenset()
        mesh.publish(listeners={gate(GATE).name: entry(gate(GATE))})
        mesh.publish(
            clusters={"db": entry(eds_cluster("db"))},
            endpoints={"db": entry(endpoints("db", mesh.port))},
            listeners={"240.240.0.5_3306": entry(tcp_listener("x", 3306, "db", address="240.240.0.5", bound=False))},
            names={"nametable": entry(names(db="240.240.0.5"))},
        )
        await eventually(lambda: mesh.refused == {"Listener/240.240.0.5_3306"})  # named differently inside
        listener = tcp_listener("240.240.0.5_3306", 3306, "db", address="240.240.0.5", bound=False)
        mesh.publish(listeners={"240.240.0.5_3306": entry(listener)})
        address = parse_ip("240.240.0.5")
        assert address
        await eventually(lambda: taps.addresses.value == frozenset({MeshAddress(address, 3306)}))
        await eventually(lambda: "db.default.mesh.internal" in taps.names.value.entries)
        served = (await mesh.side.proxy.admin.listeners())["listener_statuses"]
        assert "240.240.0.5_3306" in {found["name"] for found in served}

        without = {name: e for name, e in mesh.plane.snapshot[LDS].items() if name in ("in", gate(GATE).name)}
        mesh.plane.publish({**mesh.plane.snapshot, LDS: without})
        await eventually(lambda: taps.addresses.value == frozenset())

    run(story)


def test_what_cannot_be_decoded_is_refused_without_asking_envoy() -> None:
    async def story(mesh: Mesh) -> None:
        mesh.publish(listeners={"junk": Entry("v", b"\xff\xff\xff"), "ok": entry(tcp_listener("ok", 18083, "app"))})
        await eventually(lambda: mesh.refused == {"Listener/junk"})
        await eventually(lambda: "ok" in mesh.side.subscriber.resources[LDS])
        assert await echoed(18083) == b"hello"
        mesh.plane.publish(
            {**mesh.plane.snapshot, LDS: {n: e for n, e in mesh.plane.snapshot[LDS].items() if n != "junk"}}
        )

    run(story)


def test_an_envoy_that_comes_later_gets_everything_although_nobody_was_there_to_judge() -> None:
    async def story(paths: Paths) -> None:
        server = await echo_server()
        plane = FakeControlPlane(echo_config(server.sockets[0].getsockname()[1]))
        side = Side(paths, plane)
        side.proxy.stand_down()
        async with side.running():
            await eventually(lambda: "in" in side.subscriber.resources.get(LDS, {}))
            assert side.relay.wanted.value[EDS] == {"app"}
            await eventually(lambda: "app" in side.subscriber.resources.get(EDS, {}))
            await eventually(lambda: side.cache.saved_at.value is not None)
        plane.down = {side.hub}
        async with Side(paths, plane).running() as later:
            await later.ready()
            assert await echoed() == b"hello"
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def test_a_torn_cache_is_set_aside_and_the_host_starts_from_the_hub() -> None:
    async def story(paths: Paths) -> None:
        server = await echo_server()
        plane = FakeControlPlane(echo_config(server.sockets[0].getsockname()[1]))
        side = Side(paths, plane)
        (paths.state / "cache").write_bytes(b'{"format": 1, "sha256": "00", "saved": "2026-01-01T00:00:00+00:00"}\nxx')
        async with side.running():
            assert "cache-damaged" in side.conditions.codes()
            assert (paths.state / "cache.set-aside").exists()
            await side.ready()
            assert await echoed() == b"hello"
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))


def test_an_agent_that_lost_its_cache_learns_from_a_living_envoy_what_is_in_use() -> None:
    async def story(paths: Paths) -> None:
        server = await echo_server()
        listener = tcp_listener("240.240.0.5_3306", 3306, "app", address="240.240.0.5", bound=False)
        config = echo_config(server.sockets[0].getsockname()[1])
        config = {**config, LDS: {**config[LDS], listener.name: entry(listener), gate(GATE).name: entry(gate(GATE))}}
        async with Side(paths, FakeControlPlane(config)).running() as side:
            await side.ready()
            await eventually(lambda: side.relay.taps.addresses.value)
        (paths.state / "cache").unlink()
        async with Side(paths, FakeControlPlane(config)).running() as side:
            assert (await side.ready()).adopted
            await eventually(lambda: side.relay.taps.addresses.value)
        server.close()

    with own_root() as paths:
        asyncio.run(story(paths))
