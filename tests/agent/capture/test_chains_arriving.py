"""``capture.inbound: all``: what comes in for a process passes the proxy, whichever way the kernel hands it over."""

import socket
from ipaddress import ip_network

import pytest

from meshagent.agent.capture import verify
from meshagent.config.settings import CaptureConfig, Exclude, FailurePolicy, InboundScope, PortRange, RedirectMode
from meshagent.lab.waiting import wait_until
from meshagent.model.doors import Door
from meshagent.model.marks import CLIENT_SOURCE_MARK
from meshagent.model.policy import HostPolicy
from meshagent.model.ports import INBOUND
from meshagent.model.posture import PlaintextMode, Posture
from tests.agent.capture.stand import Server, Stand, service

pytestmark = pytest.mark.root


IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75  # linux/in.h, linux/in6.h
TPROXY, REDIRECT = RedirectMode.TPROXY, RedirectMode.REDIRECT


@pytest.fixture(params=[("nft", TPROXY), ("nft", REDIRECT), ("iptables", REDIRECT)], ids="-".join)
def way(request: pytest.FixtureRequest) -> tuple[str, RedirectMode]:
    """Legacy iptables refuses TPROXY (test_backend.py)."""
    found: tuple[str, RedirectMode] = request.param
    return found


@pytest.fixture
def backend(way: tuple[str, RedirectMode]) -> str:
    return way[0]


@pytest.fixture
def mode(way: tuple[str, RedirectMode]) -> RedirectMode:
    return way[1]


def wanted(mode: RedirectMode, **more: object) -> CaptureConfig:
    return CaptureConfig(inbound=InboundScope.ALL, mode=mode, **more)  # type: ignore[arg-type]


def inbound_proxy(stand: Stand, mode: RedirectMode) -> Server:
    """What stands where Envoy's inbound listener is."""
    listener = stand.host.socket(stand.address_family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    address = "0.0.0.0" if stand.family == 4 else "::"
    if mode is TPROXY:
        level, option = (socket.IPPROTO_IP, IP_TRANSPARENT) if stand.family == 4 else (41, IPV6_TRANSPARENT)
        listener.setsockopt(level, option, 1)
        address = stand.loopback
    listener.bind((address, INBOUND))
    listener.listen(128)
    stand.servers.append(Server(listener, "proxy"))
    return stand.servers[-1]


def test_a_connection_from_outside_reaches_the_proxy_which_sees_who_dialled_what(
    stand: Stand, mode: RedirectMode
) -> None:
    inbound_proxy(stand, mode)
    stand.serve(stand.host, 8080, "app")
    host, peer = stand.own(stand.host), stand.own(stand.peer)
    with stand.open(host, 8080, stand.peer) as before:
        stand.capture(Posture.PERMISSIVE, config=wanted(mode))

        with stand.open(host, 8080, stand.peer) as captured:
            assert captured.greeting == f"proxy {peer} {host} 8080"
            assert captured.says() and before.says()
            stand.capture(Posture.PERMISSIVE)
            assert captured.says() and before.says(), "and when it ends"
        assert stand.dial(host, 8080, stand.peer).startswith("app ")


def test_the_way_from_the_proxy_to_the_process_and_local_callers_are_not_redirected(
    stand: Stand, mode: RedirectMode
) -> None:
    inbound_proxy(stand, mode)
    stand.serve(stand.host, 8080, "app")
    stand.capture(Posture.PERMISSIVE, config=wanted(mode))

    assert stand.dial_as(0, stand.own(stand.host), 8080, mark=CLIENT_SOURCE_MARK).startswith("app ")
    for address in (stand.own(stand.host), stand.loopback):
        assert stand.dial(address, 8080).startswith("app ")


def test_sshd_the_session_that_types_and_the_mesh_itself_are_never_redirected(stand: Stand, mode: RedirectMode) -> None:
    inbound_proxy(stand, mode)
    for port in (22, 2200, 15008):
        stand.serve(stand.host, port, "direct")
    facts = {"session_ports": frozenset({2200})}
    stand.capture(Posture.PERMISSIVE, config=wanted(mode), facts=facts)
    for port in (22, 2200, 15008):
        assert stand.dial(stand.own(stand.host), port, stand.peer).startswith("direct "), port

    forced = wanted(mode, force_ports=(PortRange(2200, 2200),))
    stand.capture(Posture.PERMISSIVE, config=forced, facts=facts)
    assert stand.dial(stand.own(stand.host), 2200, stand.peer).startswith("proxy ")
    assert stand.dial(stand.own(stand.host), 22, stand.peer).startswith("direct ")


def test_where_nobody_listens_a_connection_is_refused_as_always(stand: Stand, mode: RedirectMode) -> None:
    proxy = inbound_proxy(stand, mode)
    stand.serve(stand.host, 9090, "local", stand.loopback)
    stand.capture(Posture.PERMISSIVE, config=wanted(mode))

    for port in (8080, 9090):
        with pytest.raises(ConnectionRefusedError):
            stand.dial(stand.own(stand.host), port, stand.peer)
    assert proxy.accepted == 0


def test_excluded_ports_and_networks_come_in_directly(stand: Stand, mode: RedirectMode) -> None:
    inbound_proxy(stand, mode)
    stand.serve(stand.host, 8080, "app")
    stand.serve(stand.host, 8081, "app")
    stand.capture(
        Posture.PERMISSIVE, config=wanted(mode, exclude=Exclude(ports=(PortRange(8081, 8090), PortRange(22, 30))))
    )
    assert stand.dial(stand.own(stand.host), 8080, stand.peer).startswith("proxy ")
    assert stand.dial(stand.own(stand.host), 8081, stand.peer).startswith("app ")

    network = ip_network(stand.own(stand.peer))
    stand.capture(Posture.PERMISSIVE, config=wanted(mode, exclude=Exclude(cidrs=(network,))))
    assert stand.dial(stand.own(stand.host), 8080, stand.peer).startswith("app ")


def test_plain_callers_are_counted_or_refused_by_the_port_they_dialled(stand: Stand, mode: RedirectMode) -> None:
    inbound_proxy(stand, mode)
    stand.serve(stand.host, 8080, "app")
    stand.serve(stand.host, 8081, "app")
    policy = HostPolicy({8081: PlaintextMode.STRICT})
    services = (service("web", 8080), service("db", 8081))
    stand.capture(Posture.PERMISSIVE, config=wanted(mode), services=services, policy=policy)

    assert stand.dial(stand.own(stand.host), 8080, stand.peer).startswith("proxy ")
    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.own(stand.host), 8081, stand.peer)
    found = {(c.port, str(c.address), c.refused) for c in verify.callers(stand.guard.listing())}
    peer = stand.own(stand.peer)
    assert found == {(8080, peer, False), (8081, peer, True)}


def test_without_a_proxy_the_process_answers_itself_or_by_policy_closed_nobody(
    stand: Stand, mode: RedirectMode
) -> None:
    stand.serve(stand.host, 8080, "app")
    host = stand.own(stand.host)
    stand.capture(Posture.PERMISSIVE, config=wanted(mode))
    if mode is TPROXY:
        assert stand.dial(host, 8080, stand.peer).startswith("app "), "the kernel itself goes on to the process"
    stand.guard.bypass("proxy", "test")
    assert stand.dial(host, 8080, stand.peer).startswith("app ")
    assert verify.around_proxy(stand.guard.listing()) == 1

    stand.capture(Posture.PERMISSIVE, config=wanted(mode, on_proxy_failure=FailurePolicy.CLOSED))
    with pytest.raises(ConnectionRefusedError):
        stand.dial(host, 8080, stand.peer)
    proxy = inbound_proxy(stand, mode)  # one that hangs: the kernel still accepts for it
    assert stand.dial(host, 8080, stand.peer).startswith("proxy ")
    stand.refuse_as_if_hung()
    with pytest.raises(ConnectionRefusedError):
        stand.dial(host, 8080, stand.peer)
    assert proxy.accepted == 1


def test_who_dials_the_proxys_inbound_port_itself_is_refused(stand: Stand, mode: RedirectMode) -> None:
    inbound_proxy(stand, mode)
    stand.capture(Posture.PERMISSIVE, config=wanted(mode))

    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.own(stand.host), INBOUND, stand.peer)
    for address in (stand.own(stand.host), stand.loopback):
        with pytest.raises(ConnectionRefusedError):
            stand.dial(address, INBOUND)


def test_a_port_that_somebody_else_forwards_is_left_alone_though_a_process_listens_on_it(
    stand: Stand, mode: RedirectMode
) -> None:
    """What docker does for a published port: DNAT, and a process of its own that listens."""
    inbound_proxy(stand, mode)
    stand.serve(stand.host, 8080, "docker-proxy")
    stand.serve(stand.host, 9999, "container")
    to = f"{stand.own(stand.host)}:9999" if stand.family == 4 else f"[{stand.own(stand.host)}]:9999"
    config = wanted(mode, exclude=Exclude(ports=(PortRange(9999, 9999),)))
    if stand.backend == "nft":
        family = "ip" if stand.family == 4 else "ip6"
        rules = f"""table {family} theirs {{
          chain pre {{ type nat hook prerouting priority -100; tcp dport 8080 dnat to {to}; }}
        }}"""
        stand.host.run(["nft", "-f", "-"], input=rules)
        stand.capture(Posture.PERMISSIVE, config=config)
        assert stand.dial(stand.own(stand.host), 8080, stand.peer).startswith("container ")
        return

    stand.capture(Posture.PERMISSIVE, config=config)
    program = "iptables-legacy" if stand.family == 4 else "ip6tables-legacy"
    theirs = ["-p", "tcp", "--dport", "8080", "-j", "DNAT", "--to-destination", to]
    stand.host.run(
        [program, "-w", "5", "-t", "nat", "-A", "PREROUTING", *theirs]
    )  # as docker does: behind all that is there

    def answers() -> bool:
        return stand.dial(stand.own(stand.host), 8080, stand.peer).startswith("container ")

    wait_until(answers, 20, "our rule to go to the end again")


def test_only_a_family_that_the_proxy_has_a_listener_for_is_redirected(stand: Stand, mode: RedirectMode) -> None:
    inbound_proxy(stand, mode)
    stand.serve(stand.host, 8080, "app")
    door = Door.INBOUND_TPROXY if mode is TPROXY else Door.INBOUND_REDIRECT
    other = stand.capture(Posture.PERMISSIVE, config=wanted(mode), doors=frozenset({(door, 10 - stand.family)}))
    assert stand.dial(stand.own(stand.host), 8080, stand.peer).startswith("app ")
    assert not other.waiting
    none = stand.capture(Posture.PERMISSIVE, config=wanted(mode), doors=frozenset())
    assert "capture.inbound: all" in " ".join(none.waiting)
    stand.capture(Posture.PERMISSIVE, config=wanted(mode), doors=frozenset({(door, stand.family)}))
    assert stand.dial(stand.own(stand.host), 8080, stand.peer).startswith("proxy ")
