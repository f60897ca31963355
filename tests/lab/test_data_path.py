"""Real bytes through real Envoys on lab hosts, configured by the hub's snapshots over ADS."""

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshagent.hub.state import MeshPort, MeshState
from meshagent.lab import Lab, Program, wait_until
from meshagent.lab.waiting import patience
from meshagent.model.address import parse_ip
from meshagent.model.service import ServiceProtocol
from tests.lab.mesh import took_at_best
from tests.lab.mesh_by_hand import MeshByHand, spiffe, start_applications

pytestmark = pytest.mark.root

TCP, HTTP, MYSQL = ServiceProtocol.TCP, ServiceProtocol.HTTP, ServiceProtocol.MYSQL
CLAIMED = parse_ip("192.0.2.7")
APPLICATIONS = [
    ("greet", "::", 3306),
    ("greet", "127.0.0.1", 6379),
    ("greet", "0.0.0.0", 5432),
    ("count", "::", 9000),
    ("pour", "::", 9001),
    ("http", "::", 8080),
    ("http", "::1", 8081),
]


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[MeshByHand]:
    with Lab() as lab, MeshByHand(lab, envoy) as made:
        made.add("web", "web")
        made.add("one", "db", applications=APPLICATIONS)
        made.add("two", "db", applications=APPLICATIONS)
        made.add("rogue", "db", presents="rogue", applications=APPLICATIONS)
        both = [("one", {}), ("two", {})]
        services = (
            made.service("db", MeshPort(3306, MYSQL), both, number=1, target_port=3306, claimed=(CLAIMED,)),
            made.service(
                "local", MeshPort(6379, TCP), [("one", {"target_address": "127.0.0.1"})], number=2, target_port=6379
            ),
            made.service("www", MeshPort(80, HTTP), [("one", {})], number=3, target_port=8080),
            made.service("lwww", MeshPort(80, HTTP), [("one", {"target_address": "::1"})], number=4, target_port=8081),
            made.service("rogue", MeshPort(3306, TCP), [("rogue", {})], number=5, target_port=3306),
            made.service("count", MeshPort(9000, TCP), [("one", {})], number=6, target_port=9000),
            made.service(
                "old", MeshPort(5432, TCP), [("one", {"target_address": "0.0.0.0"})], number=7, target_port=5432
            ),
            made.service("pour", MeshPort(9001, TCP), [("one", {})], number=10, target_port=9001),
            made.service("pair", MeshPort(80, HTTP), both, number=8, target_port=8080),
        )
        made.publish(lambda s: replace(s, services=services))
        made.settle()
        yield made


def greeting(mesh: MeshByHand, address: str, port: int, host: str = "web") -> list[str]:
    """What a server that speaks first says: the client's address as it sees it, its own, its name."""
    with mesh.members[host].host.connect(address, port) as client, client.makefile("rb") as lines:
        said = lines.readline().decode().split()
        if said:
            client.sendall(b"and back\n")
            assert lines.readline() == b"and back\n"
        return said


def get(mesh: MeshByHand, url: str, *options: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(mesh.members["web"].host.run(["curl", "-gsS", "-m", "5", *options, url]).stdout)
    shown["headers"] = dict(shown["headers"])
    return shown


def test_envoy_accepts_every_resource(mesh: MeshByHand) -> None:
    assert {name: mesh.rejections.of(name) for name in mesh.members} == dict.fromkeys(mesh.members, ())


@pytest.mark.parametrize("address", ["240.240.0.1", "2001:2::1", "192.0.2.7"])
def test_a_server_that_speaks_first_is_reached_by_virtual_and_claimed_addresses(mesh: MeshByHand, address: str) -> None:
    client, own, host = greeting(mesh, address, 3306)
    assert took_at_best(lambda: greeting(mesh, address, 3306)) < 1
    web, one = mesh.members["web"].host, mesh.members["one"].host
    assert (client, own, host) == (web.address4, one.address4, "one")


def test_a_process_on_loopback_sees_its_own_hosts_address_as_client(mesh: MeshByHand) -> None:
    assert greeting(mesh, "240.240.0.2", 6379) == [mesh.members["one"].host.address4, "127.0.0.1", "one"]


def test_a_peer_over_ipv6_is_seen_with_its_ipv6_address(mesh: MeshByHand) -> None:
    turned(mesh, "db")
    web, one = mesh.members["web"].host, mesh.members["one"].host
    assert greeting(mesh, "2001:2::1", 3306) == [web.address6, one.address6, "one"]
    turned(mesh, "old")  # listens on IPv4 only: the host's own address stands in
    assert greeting(mesh, "2001:2::7", 5432) == [one.address4, one.address4, "one"]


def turned(mesh: MeshByHand, name: str) -> None:
    """Peers prefer IPv6 for this service from now on."""

    def change(state: MeshState) -> MeshState:
        return replace(
            state,
            services=tuple(
                replace(s, endpoints=tuple(replace(e, addresses=e.addresses[::-1]) for e in s.endpoints))
                if s.name == name
                else s
                for s in state.services
            ),
        )

    mesh.publish(change)
    mesh.settle("web")


@pytest.mark.parametrize("address", ["240.240.0.3", "[2001:2::3]"])
def test_http_keeps_the_clients_address_and_carries_its_identity(mesh: MeshByHand, address: str) -> None:
    shown = get(mesh, f"http://{address}/a%2Fb//c?x=1", "-H", "Host: My.App")
    assert shown["peer"] == mesh.members["web"].host.address4
    assert shown["line"] == "GET /a%2Fb//c?x=1 HTTP/1.1"
    assert shown["headers"]["Host"] == "My.App"
    assert f"URI={spiffe('web')}" in shown["headers"]["X-Forwarded-Client-Cert"]


def test_what_a_client_forges_does_not_arrive(mesh: MeshByHand) -> None:
    forged = {
        "X-Forwarded-Client-Cert": f"URI={spiffe('admin')}",
        "X-Forwarded-For": "127.0.0.1",
        "X-Meshagent-Service": "lwww.default.mesh.internal:80",
    }
    shown = get(mesh, "http://240.240.0.3/", *(word for k, v in forged.items() for word in ("-H", f"{k}: {v}")))
    assert "admin" not in shown["headers"]["X-Forwarded-Client-Cert"]
    assert shown["peer"] == mesh.members["web"].host.address4
    assert shown["local"] == mesh.members["one"].host.address4  # not the service on loopback
    assert shown["headers"]["X-Forwarded-For"] == "127.0.0.1"  # passed on as the application sent it


def test_an_http_request_and_its_answer_stay_as_they_are(mesh: MeshByHand) -> None:
    one = mesh.members["one"].host
    url = f"http://{one.address4}:8080/x"
    options = ["-H", "X-Forwarded-For: 192.0.2.1", "-H", "X-Forwarded-Proto: https", "-H", "Host: app"]
    direct, meshed = get(mesh, url, *options), get(mesh, "http://240.240.0.3/x", *options)
    added = {"X-Forwarded-Client-Cert", "X-Request-Id"}
    assert {k: v for k, v in meshed["headers"].items() if k not in added} == direct["headers"]
    assert answer_headers(mesh, "http://240.240.0.3/x") == answer_headers(mesh, url)


def answer_headers(mesh: MeshByHand, url: str) -> set[str]:
    head = mesh.members["web"].host.run(["curl", "-sD-", "-o/dev/null", "-H", "Host: app", url]).stdout
    return {line.partition(":")[0] for line in head.splitlines()[1:] if line}


def test_an_http_process_on_ipv6_loopback_is_reached(mesh: MeshByHand) -> None:
    shown = get(mesh, "http://240.240.0.4/")
    assert (shown["peer"], shown["local"]) == (mesh.members["one"].host.address6, "::1")


def test_http_1_0_passes(mesh: MeshByHand) -> None:
    assert get(mesh, "http://240.240.0.3/", "-0")["host"] == "one"


def test_a_server_with_another_identity_than_announced_is_refused(mesh: MeshByHand) -> None:
    assert greeting(mesh, "240.240.0.5", 3306) == []


def test_a_service_that_the_host_did_not_announce_is_refused(mesh: MeshByHand) -> None:
    before = mesh.state.value
    stray = mesh.service("stray", MeshPort(3306, TCP), [("two", {})], number=9, target_port=3306)
    lost = replace(stray, endpoints=tuple(replace(e, host_name="") for e in stray.endpoints))
    mesh.publish(lambda s: replace(s, services=(*s.services, lost)))
    mesh.settle()
    assert greeting(mesh, "240.240.0.9", 3306) == []
    mesh.publish(lambda _: before)
    mesh.settle()


def test_no_byte_is_lost_when_the_sender_closes_before_a_slow_reader_is_done(mesh: MeshByHand) -> None:
    size = 3_000_000
    with mesh.members["web"].host.connect("240.240.0.6", 9000) as client:
        client.sendall(b"x" * size)
    applications = mesh.members["one"].applications
    assert applications
    wait_until(lambda: "counted" in applications.text() or "error" in applications.text(), 30, "the reader is done")
    assert f"counted {size}" in applications.text()


def test_no_byte_is_lost_when_the_server_closes_before_a_slow_client_is_done(mesh: MeshByHand) -> None:
    web = mesh.members["web"].host  # a test before may have left an endpoint ejected for a moment
    with wait_until(lambda: web.connect("240.240.0.10", 9001), 15, "a connection to the service") as client:
        client.shutdown(socket.SHUT_WR)
        total = 0
        while data := client.recv(16_384):
            total += len(data)
            time.sleep(0.002)  # a slow reader, not a wait
    assert total == 3_000_000


def test_an_http_request_is_tried_elsewhere_when_the_process_is_gone(mesh: MeshByHand) -> None:
    seen: set[str] = set()
    wait_until(lambda: seen.add(get(mesh, "http://240.240.0.8/")["host"]) or seen == {"one", "two"}, 30, "both")
    stop(mesh, "one")
    try:
        answers = [get(mesh, "http://240.240.0.8/", "-d", "payload") for _ in range(10)]
        assert {answer["host"] for answer in answers} == {"two"} and {a["length"] for a in answers} == {7}
    finally:
        restart(mesh, "one")


def test_a_connection_goes_to_the_standby_when_the_active_process_is_gone(mesh: MeshByHand) -> None:
    assert greeting(mesh, "240.240.0.1", 3306)[2] == "one"
    stop(mesh, "one")
    try:
        started = time.monotonic()
        assert greeting(mesh, "240.240.0.1", 3306)[2] == "two"
        assert time.monotonic() - started < 1.5 * patience()
    finally:
        restart(mesh, "one")
        wait_until(lambda: greeting(mesh, "240.240.0.1", 3306)[2] == "one", 20, "the active one serves again")


def stop(mesh: MeshByHand, name: str) -> None:
    program = mesh.members[name].applications
    assert isinstance(program, Program)
    program.kill()


def restart(mesh: MeshByHand, name: str) -> None:
    mesh.members[name].applications = start_applications(mesh.members[name].host, APPLICATIONS)


def test_news_of_health_moves_traffic_and_all_unhealthy_means_try_anyway(mesh: MeshByHand) -> None:
    def well(state: MeshState, **health: bool) -> MeshState:
        services = tuple(
            replace(s, endpoints=tuple(replace(e, healthy=health.get(e.host_name, True)) for e in s.endpoints))
            if s.name == "db"
            else s
            for s in state.services
        )
        return replace(state, services=services)

    mesh.publish(lambda s: well(s, one=False))
    started = time.monotonic()
    wait_until(lambda: greeting(mesh, "240.240.0.1", 3306)[2] == "two", 5, "the standby serves")
    assert time.monotonic() - started < 1 * patience()
    mesh.publish(lambda s: well(s, one=False, two=False))
    mesh.settle("web")
    assert greeting(mesh, "240.240.0.1", 3306)[2] in ("one", "two")
    mesh.publish(well)
    mesh.settle("web")


def test_a_host_that_vanishes_without_a_word_costs_little(mesh: MeshByHand) -> None:
    wait_until(lambda: greeting(mesh, "240.240.0.1", 3306)[2] == "one", 20, "the active one serves")
    mesh.members["one"].host.run(["ip", "link", "set", "eth0", "down"])
    try:
        waits = []
        for _ in range(10):
            started = time.monotonic()
            assert greeting(mesh, "240.240.0.1", 3306)[2] == "two"
            waits.append(time.monotonic() - started)
        assert max(waits) < 2.5 and sorted(waits)[5] < 0.2
    finally:
        mesh.members["one"].host.run(["ip", "link", "set", "eth0", "up"])


def test_a_process_on_the_host_cannot_use_the_proxys_listeners_directly(mesh: MeshByHand) -> None:
    with mesh.members["web"].host.connect("127.0.0.1", 15001) as client:
        assert client.recv(1) == b""
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", 15001), 1):
        pass
