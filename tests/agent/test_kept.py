"""What an agent that starts takes over of the rules it finds, and when it lets go of it."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshagent.agent.kept import Captured, Kept, both, decode, encode
from meshagent.agent.ports import NEEDS, Taken
from meshagent.agent.relay.taps import Taps
from meshagent.guard.client import GuardClient, GuardUnreachableError
from meshagent.machine import state
from meshagent.model.address import MeshAddress, parse_ip
from meshagent.model.doors import Door, PortDoor
from meshagent.model.policy import HostPolicy, RedirectReason
from meshagent.model.posture import PlaintextMode
from meshagent.protocol.types import HOST_POLICY, LDS
from meshagent.runtime.latest import Latest
from tests.fakes.eventually import eventually

MUTUAL_TLS = RedirectReason.MUTUAL_TLS
CLOSED = PortDoor(Door.PORTS_TPROXY, 4, 80, plain=False)
STRICT, PERMISSIVE = PlaintextMode.STRICT, PlaintextMode.PERMISSIVE


def address(text: str, port: int = 6379) -> MeshAddress:
    ip = parse_ip(text)
    assert ip
    return MeshAddress(ip, port)


OLD, NEW = address("240.240.0.1"), address("2001:2::2")


class FoundGuard(GuardClient):
    """A guard that holds rules, or none, or doesn't answer."""

    def __init__(self, installed: bool | None) -> None:
        self.installed = installed

    def state(self) -> dict[str, Any]:
        if self.installed is None:
            raise GuardUnreachableError(Path("guard.sock"), "nobody there")
        return {"installed": self.installed}


class World:
    def __init__(self, path: Path, installed: bool | None = True) -> None:
        self.path = path / "captured.json"
        self.taps, self.settled = Taps(), Latest[frozenset[str]](frozenset())
        self.taken: Latest[tuple[Taken, ...]] = Latest(())
        self.kept = Kept(self.path, FoundGuard(installed), self.taps, self.settled, self.taken)

    def remember(self, *mesh: MeshAddress, **policy: PlaintextMode) -> None:
        ports = HostPolicy({int(port.removeprefix("port")): mode for port, mode in policy.items()})
        state.write_state(self.path, encode(Captured(frozenset(mesh), ports)))


def test_addresses_of_before_stay_until_the_control_plane_and_envoy_have_spoken(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.remember(OLD)
    asyncio.run(world.kept.start())
    assert world.kept.mesh.value == {OLD}
    world.taps.addresses.set(frozenset({NEW}))
    world.settled.set(frozenset({HOST_POLICY}))
    world.kept.refresh()
    assert world.kept.mesh.value == {OLD, NEW}
    world.settled.set(frozenset({LDS}))
    world.kept.refresh()
    assert world.kept.mesh.value == {NEW}


def test_nothing_is_captured_for_a_stranger_who_holds_the_port_where_it_would_arrive(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.remember(OLD)
    world.taken.set(tuple(Taken(need, 7, "thief") for need in NEEDS if need.port == 15001 and need.ip.version == 4))
    asyncio.run(world.kept.start())
    world.taps.addresses.set(frozenset({NEW}))
    world.kept.refresh()
    assert world.kept.mesh.value == {NEW}, "the other family goes on"
    assert world.kept.unserved.value == {OLD}, "known, for a policy that lets nothing go direct"
    assert world.kept.shut.value == {4}
    world.taken.set(())
    world.kept.refresh()
    assert world.kept.mesh.value == {OLD, NEW} and world.kept.unserved.value == frozenset()
    assert world.kept.shut.value == frozenset()


def test_a_family_is_shut_where_the_proxy_could_not_bind_whoever_holds_the_port(tmp_path: Path) -> None:
    world = World(tmp_path)
    asyncio.run(world.kept.start())
    assert world.kept.shut.value == frozenset(), "nothing is known yet"
    world.taps.unserved.set(frozenset({NEW}))
    world.kept.refresh()
    assert world.kept.shut.value == {6}


def test_a_port_that_was_strict_stays_strict_until_the_control_plane_says_otherwise(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.remember(port80=STRICT, port81=PERMISSIVE)
    asyncio.run(world.kept.start())
    world.taps.policy.set(HostPolicy({80: PERMISSIVE, 82: STRICT}))
    world.kept.refresh()
    assert world.kept.policy.value.plaintext == {80: STRICT, 81: PERMISSIVE, 82: STRICT}
    world.settled.set(frozenset({HOST_POLICY}))
    world.kept.refresh()
    assert world.kept.policy.value.plaintext == {80: PERMISSIVE, 82: STRICT}


@pytest.mark.parametrize("installed", [False, None], ids=["no-rules", "no-guard"])
def test_nothing_is_taken_over_where_nothing_is_captured(tmp_path: Path, installed: bool | None) -> None:
    world = World(tmp_path, installed)
    world.remember(OLD)
    asyncio.run(world.kept.start())
    assert world.kept.mesh.value == frozenset()


def test_what_is_captured_is_written_down_for_the_next_agent(tmp_path: Path) -> None:
    async def story() -> None:
        world = World(tmp_path)
        running = asyncio.create_task(world.kept.run())
        world.taps.addresses.set(frozenset({OLD, NEW}))
        world.taps.policy.set(HostPolicy({80: STRICT}, {80: MUTUAL_TLS}))
        world.taps.ports.set(frozenset({CLOSED}))
        world.taps.doors.set(frozenset({(Door.PASSTHROUGH, 6)}))
        await eventually(lambda: decode(state.read_state(world.path).data or {}).doors)
        running.cancel()
        later = World(tmp_path)
        await later.kept.start()
        assert later.kept.mesh.value == {OLD, NEW}
        assert later.kept.policy.value.plaintext == {80: STRICT}
        assert later.kept.policy.value.redirect == {80: MUTUAL_TLS}
        assert later.kept.doors.value == {(Door.PASSTHROUGH, 6)}
        assert later.kept.ports.value == {CLOSED}
        later.taps.ports.set(frozenset({replace(CLOSED, plain=True)}))
        later.kept.refresh()
        assert later.kept.ports.value == {replace(CLOSED, plain=True)}, "what the proxy has now counts"
        later.settled.set(frozenset({LDS}))
        later.kept.refresh()
        assert later.kept.doors.value == frozenset()

    asyncio.run(story())


def test_lines_that_cannot_be_read_are_left_out_alone() -> None:
    found = decode({"mesh": ["240.240.0.1 6379", "x 1", "10.0.0.1 0", "10.0.0.1", ""], "policy": ["80 strict", "81 x"]})
    assert found == Captured(frozenset({OLD}), HostPolicy({80: STRICT}))
    odd = ["ports-tproxy 4 80 closed", "ports-tproxy 5 80 closed", "outbound 4 80 plain", "ports-tproxy 4 80", "x", ""]
    assert decode({"ports": odd}).ports == {CLOSED}
    assert decode({"redirect": ["80 mutual-tls", "81 x"]}).policy.redirect == {80: MUTUAL_TLS}
    assert decode({"doors": ["outbound 4", "outbound 5", "x 4", ""]}).doors == {(Door.OUTBOUND, 4)}


def test_of_two_opinions_the_stricter_counts() -> None:
    assert both(HostPolicy({1: PERMISSIVE, 2: STRICT}), HostPolicy({1: STRICT, 2: PERMISSIVE})).plaintext == {
        1: STRICT,
        2: STRICT,
    }
    assert both(HostPolicy({}, {1: MUTUAL_TLS}), HostPolicy()).redirect == {1: MUTUAL_TLS}
