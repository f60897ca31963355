"""What leaves a captured host, on a real kernel with real sockets: the outbound rows of the case table."""

import socket
import time

import pytest

from meshagent.model.marks import AGENT_MARK, PROXY_MARK
from meshagent.model.posture import Posture
from tests.agent.capture.stand import OTHER_UID, PROXY_UID, Stand, mesh

pytestmark = pytest.mark.root


def test_a_virtual_address_reaches_the_proxy_which_sees_what_was_dialled(stand: Stand) -> None:
    stand.proxy()
    stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 6379))

    assert stand.dial(stand.virtual, 6379) == f"proxy {stand.own(stand.host)} {stand.virtual} 6379"


def test_a_claimed_literal_reaches_the_proxy_though_its_machine_lives(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.peer, 3306, "machine")
    stand.capture(Posture.OUTBOUND, mesh(stand.own(stand.peer), 3306))

    assert stand.dial(stand.own(stand.peer), 3306).startswith("proxy ")


def test_another_port_of_a_claimed_machine_stays_direct(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.peer, 22, "sshd")
    stand.capture(Posture.OUTBOUND, mesh(stand.own(stand.peer), 3306))

    assert stand.dial(stand.own(stand.peer), 22).startswith("sshd ")


def test_any_other_address_is_untouched(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.peer, 80, "web")
    stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 80))

    assert stand.dial(stand.own(stand.peer), 80) == f"web {stand.own(stand.host)} {stand.own(stand.peer)} 80"


def test_own_addresses_are_direct_even_where_a_rule_set_claims_them(stand: Stand) -> None:
    """The decision refuses such a claim; the rules hold even if one slips through (an address added since)."""
    stand.proxy()
    stand.serve(stand.host, 8080, "own")
    extra = "10.77.0.1" if stand.family == 4 else "fd77::1"
    stand.capture(Posture.OUTBOUND, mesh(extra, 8080))
    stand.host.run(["ip", "address", "add", f"{extra}/{32 if stand.family == 4 else 128}", "dev", "eth0"])

    for address in (extra, stand.own(stand.host), stand.loopback):
        assert stand.dial(address, 8080).startswith("own "), address


def test_an_undeclared_port_udp_and_icmp_to_a_virtual_address_fail_at_once(stand: Stand) -> None:
    stand.proxy()
    stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 6379))

    started = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.virtual, 6380)
    for kind, protocol in ((socket.SOCK_DGRAM, 0), (socket.SOCK_RAW, 1 if stand.family == 4 else 58)):
        sender = stand.host.inside(
            lambda kind=kind, protocol=protocol: socket.socket(stand.address_family, kind, protocol)
        )  # type: ignore[misc]
        with sender:
            sender.settimeout(3)
            with pytest.raises((PermissionError, ConnectionRefusedError, OSError)) as refused:
                sender.connect((stand.virtual, 53))
                sender.send(bytes([8 if stand.family == 4 else 128, 0, 0, 0, 0, 0, 0, 0]))
                sender.recv(64)
            assert not isinstance(refused.value, TimeoutError)
    assert time.monotonic() - started < 0.5


def test_the_proxy_and_the_agent_go_direct(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.peer, 3306, "machine")
    stand.capture(Posture.OUTBOUND, mesh(stand.own(stand.peer), 3306))
    target = stand.own(stand.peer)

    assert stand.dial_as(PROXY_UID, target, 3306).startswith("machine ")
    assert stand.dial_as(OTHER_UID, target, 3306, mark=AGENT_MARK).startswith("machine ")
    assert stand.dial_as(OTHER_UID, target, 3306, mark=PROXY_MARK).startswith("machine ")
    assert stand.dial_as(OTHER_UID, target, 3306).startswith("proxy ")


def test_our_own_ports_are_refused_to_local_users_and_to_other_hosts(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.host, 15006, "inbound")
    stand.capture(Posture.PERMISSIVE, mesh(stand.virtual, 6379))

    assert stand.dial_as(OTHER_UID, stand.loopback, 15001) == "ECONNREFUSED"
    assert stand.dial_as(PROXY_UID, stand.loopback, 15001) == "ECONNREFUSED", "the proxy must not loop to itself"
    assert stand.dial_as(OTHER_UID, stand.own(stand.host), 15006) == "ECONNREFUSED"
    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.own(stand.host), 15006, stand.peer)
    assert stand.dial_as(0, stand.loopback, 15001, mark=AGENT_MARK).startswith("proxy "), "the agent probes it"


def test_a_service_whose_port_is_one_of_ours_still_works(stand: Stand) -> None:
    stand.proxy()
    stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 15001))

    assert stand.dial(stand.virtual, 15001) == f"proxy {stand.own(stand.host)} {stand.virtual} 15001"


def test_a_dead_proxy_means_refused_in_a_millisecond_not_a_timeout(stand: Stand) -> None:
    stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 6379))

    started = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.virtual, 6379)
    assert time.monotonic() - started < 0.1


def test_excluded_users_ports_and_networks_go_direct(stand: Stand) -> None:
    from ipaddress import ip_network

    from meshagent.config.settings import CaptureConfig, Exclude, PortRange

    stand.proxy()
    stand.serve(stand.peer, 3306, "machine")
    stand.serve(stand.peer, 3307, "machine")
    target = stand.own(stand.peer)
    addresses = (mesh(target, 3306), mesh(target, 3307))

    exclude = Exclude(uids=(OTHER_UID,), ports=(PortRange(3307, 3309),))
    stand.capture(Posture.OUTBOUND, *addresses, config=CaptureConfig(exclude=exclude))
    assert stand.dial_as(OTHER_UID, target, 3306).startswith("machine ")
    assert stand.dial(target, 3306).startswith("proxy ")
    assert stand.dial(target, 3307).startswith("machine ")

    stand.capture(Posture.OUTBOUND, *addresses, config=CaptureConfig(exclude=Exclude(cidrs=(ip_network(target),))))
    assert stand.dial(target, 3306).startswith("machine ")
