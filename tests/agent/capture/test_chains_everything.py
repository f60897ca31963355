"""``capture.outbound: all``: everything that leaves goes through the proxy, except what must not."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from meshagent.agent.capture import verify
from meshagent.config.settings import CaptureConfig, Exclude, FailurePolicy, Ipv6Mode, OutboundScope, PortRange
from meshagent.model.doors import Door
from meshagent.model.marks import AGENT_MARK, PROXY_MARK
from meshagent.model.posture import Posture
from tests.agent.capture.stand import OTHER_UID, PROXY_UID, Stand, mesh

pytestmark = pytest.mark.root

ALL = CaptureConfig(outbound=OutboundScope.ALL)


def test_a_connection_to_any_address_and_port_reaches_the_proxy_which_sees_what_was_dialled(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.peer, 80, "web")
    stand.capture(Posture.OUTBOUND, config=ALL)

    assert stand.dial(stand.own(stand.peer), 80) == f"proxy {stand.own(stand.host)} {stand.own(stand.peer)} 80"
    assert stand.dial(stand.own(stand.peer), 4711).startswith("proxy "), "whether or not somebody listens there"


def test_open_connections_stay_direct_when_everything_is_captured_and_when_it_ends(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.peer, 80, "web")
    target = stand.own(stand.peer)
    with stand.open(target, 80) as before:
        stand.capture(Posture.OUTBOUND, config=ALL)
        with stand.open(target, 80) as captured:
            assert before.says() and captured.greeting.startswith("proxy ")
            stand.capture(Posture.OUTBOUND)
            assert before.says() and captured.says()
            assert stand.dial(target, 80).startswith("web ")


def test_the_host_itself_ssh_and_the_hub_stay_direct(stand: Stand) -> None:
    stand.proxy()
    for port in (22, 8080, 15012):
        stand.serve(stand.host, port, "own")
        stand.serve(stand.peer, port, "direct")
    target = stand.own(stand.peer)
    stand.capture(Posture.OUTBOUND, config=ALL)

    assert stand.dial(target, 8080).startswith("proxy ")
    assert stand.dial(target, 22).startswith("direct "), "ssh stays ssh"
    for own in (stand.own(stand.host), stand.loopback):
        assert stand.dial(own, 8080).startswith("own ")

    changed = {"hub_addresses": frozenset({ip_address(target)})}
    stand.capture(Posture.OUTBOUND, config=ALL, facts=changed)
    assert stand.dial(target, 15012).startswith("direct "), "the hub is reached without the proxy"


def test_gateways_resolvers_and_link_local_addresses_stay_direct(stand: Stand) -> None:
    stand.proxy()
    link_local = "169.254.169.254/32" if stand.family == 4 else "fd00:ec2::254/128"
    stand.peer.run(["ip", "address", "add", link_local, "dev", "eth0"])
    stand.host.run(["ip", "route", "add", link_local, "dev", "eth0"])
    metadata = link_local.partition("/")[0]
    stand.serve(stand.peer, 80, "direct")
    target = stand.own(stand.peer)
    for fact in ({"gateways": frozenset({ip_address(target)})}, {"nameservers": (ip_address(target),)}):
        stand.capture(Posture.OUTBOUND, config=ALL, facts=fact)
        assert stand.dial(target, 80).startswith("direct ")
        assert stand.dial(metadata, 80).startswith("direct "), "cloud metadata"
    stand.peer.run(["ip", "address", "del", link_local, "dev", "eth0"])  # the next test's peer has it on the same link


def test_force_ports_takes_ssh_along(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.peer, 22, "sshd")
    stand.capture(Posture.OUTBOUND, config=CaptureConfig(outbound=OutboundScope.ALL, force_ports=(PortRange(22, 22),)))

    assert stand.dial(stand.own(stand.peer), 22).startswith("proxy ")


def test_the_proxy_and_the_agent_pass_on_without_meeting_themselves(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.peer, 80, "web")
    stand.capture(Posture.OUTBOUND, config=ALL)
    target = stand.own(stand.peer)

    assert stand.dial_as(PROXY_UID, target, 80).startswith("web ")
    assert stand.dial_as(0, target, 80, mark=PROXY_MARK).startswith("web ")
    assert stand.dial_as(0, target, 80, mark=AGENT_MARK).startswith("web ")
    assert stand.dial_as(OTHER_UID, target, 80).startswith("proxy ")


def test_what_is_excluded_goes_direct_and_a_virtual_address_without_a_service_is_refused(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.peer, 80, "web")
    stand.serve(stand.peer, 81, "web")
    exclude = Exclude(uids=(OTHER_UID,), ports=(PortRange(81, 81),))
    config = CaptureConfig(outbound=OutboundScope.ALL, exclude=exclude)
    stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 80), config=config)
    target = stand.own(stand.peer)

    assert stand.dial_as(OTHER_UID, target, 80).startswith("web ")
    assert stand.dial(target, 81).startswith("web ")
    assert stand.dial(target, 80).startswith("proxy ")
    assert stand.dial(stand.virtual, 80).startswith("proxy ")
    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.virtual, 4711)


def test_without_a_proxy_everything_goes_direct_and_is_counted_or_is_refused_by_policy_closed(stand: Stand) -> None:
    stand.serve(stand.peer, 80, "web")
    target = stand.own(stand.peer)
    stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 80), config=ALL)
    stand.guard.bypass("proxy", "test")
    assert stand.dial(target, 80).startswith("web ")
    assert verify.around_proxy(stand.guard.listing()) == 1
    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.virtual, 80)

    stand.capture(Posture.STRICT, config=ALL)
    stand.guard.bypass("proxy", "test")
    with pytest.raises(ConnectionRefusedError):
        stand.dial(target, 80)


def test_until_the_proxy_can_pass_it_on_only_the_mesh_is_captured(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.peer, 80, "web")
    target = stand.own(stand.peer)
    wishes = {"config": ALL, "doors": frozenset({(Door.PASSTHROUGH, 10 - stand.family)})}
    intent = stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 80), **wishes)
    assert stand.dial(target, 80).startswith("web ")
    assert stand.dial(stand.virtual, 80).startswith("proxy ")
    assert bool(intent.waiting) is (stand.family == 4)

    stand.capture(Posture.OUTBOUND, config=ALL, doors=frozenset({(Door.PASSTHROUGH, stand.family)}))
    assert stand.dial(target, 80).startswith("proxy ")


def shut(stand: Stand) -> dict[str, frozenset[Any]]:
    """The proxy passes on what the other family's port takes in, and has none for this one."""
    return {"shut": frozenset({stand.family}), "doors": frozenset({(Door.PASSTHROUGH, 10 - stand.family)})}


def test_with_policy_closed_nothing_leaves_while_a_stranger_holds_the_port_of_the_proxy(stand: Stand) -> None:
    thief = stand.proxy()
    for port in (80, 81):
        stand.serve(stand.peer, port, "web")
    target = stand.own(stand.peer)
    config = replace(ALL, on_proxy_failure=FailurePolicy.CLOSED)
    refused = [(target, 80), (target, 81), (target, 4711), (stand.virtual, 80)]
    with stand.open(target, 80) as before:
        stand.capture(Posture.OUTBOUND, config=config, **shut(stand))
        with stand.host.capture("tcp") as wire:
            for address, port in refused:
                with pytest.raises(ConnectionRefusedError):
                    stand.dial(address, port)
            assert stand.dial_as(OTHER_UID, target, 80) == "ECONNREFUSED"
        assert wire.packets() == [], "not a packet"
        assert before.says(), "what is open stays open"
    assert thief.accepted == 0

    stand.capture(Posture.OUTBOUND, config=config)
    assert stand.dial(target, 80).startswith("proxy "), "the port was taken back"


def test_what_is_never_captured_stays_direct_while_everything_else_is_refused(stand: Stand) -> None:
    thief = stand.proxy()
    link_local = "169.254.169.254/32" if stand.family == 4 else "fd00:ec2::254/128"
    stand.peer.run(["ip", "address", "add", link_local, "dev", "eth0"])
    stand.host.run(["ip", "route", "add", link_local, "dev", "eth0"])
    for port in (22, 80, 81):
        stand.serve(stand.peer, port, "direct")
        stand.serve(stand.host, port, "own")
    target = stand.own(stand.peer)
    exclude = Exclude(uids=(OTHER_UID,), ports=(PortRange(81, 81),))
    config = replace(ALL, on_proxy_failure=FailurePolicy.CLOSED, exclude=exclude)
    stand.capture(Posture.OUTBOUND, config=config, **shut(stand))

    with pytest.raises(ConnectionRefusedError):
        stand.dial(target, 80)
    for port, why in ((22, "ssh stays ssh"), (81, "an excluded port")):
        assert stand.dial(target, port).startswith("direct "), why
    assert stand.dial_as(OTHER_UID, target, 80).startswith("direct "), "an excluded user"
    assert stand.dial_as(PROXY_UID, target, 80).startswith("direct "), "the proxy, on the way to its peers"
    assert stand.dial_as(0, target, 80, mark=AGENT_MARK).startswith("direct ")
    assert stand.dial(link_local.partition("/")[0], 80).startswith("direct "), "cloud metadata"
    for own in (stand.own(stand.host), stand.loopback):
        assert stand.dial(own, 80).startswith("own ")
    for fact in ("hub_addresses", "gateways", "nameservers"):
        stand.capture(Posture.OUTBOUND, config=config, facts={fact: (ip_address(target),)}, **shut(stand))
        assert stand.dial(target, 80).startswith("direct "), fact
    stand.peer.run(["ip", "address", "del", link_local, "dev", "eth0"])  # the next test's peer has it on the same link
    assert thief.accepted == 0


def test_where_others_turn_a_connection_elsewhere_it_is_still_refused_or_direct_as_it_was_dialled(stand: Stand) -> None:
    """docker publishes ports of containers on own addresses of the host; nobody's DNAT is a way out."""
    stand.proxy()
    for port in (80, 81):
        stand.serve(stand.peer, port, "container")
    target, own = stand.own(stand.peer), stand.own(stand.host)
    program = {4: "iptables", 6: "ip6tables"}[stand.family] + {"nft": "-nft", "iptables": "-legacy"}[stand.backend]
    to = f"[{target}]:81" if stand.family == 6 else f"{target}:81"
    dnat = [program, "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "80", "-j", "DNAT", "--to-destination", to]
    stand.host.run(dnat)
    config = replace(ALL, on_proxy_failure=FailurePolicy.CLOSED)
    stand.capture(Posture.OUTBOUND, config=config, **shut(stand))

    assert stand.dial(own, 80).startswith("container ")
    with stand.host.capture(f"tcp and dst host {target}") as wire, pytest.raises(ConnectionRefusedError):
        stand.dial(target, 80)
    assert wire.packets() == []


def test_with_policy_open_everything_goes_direct_while_the_proxy_has_no_port(stand: Stand) -> None:
    thief = stand.proxy()
    stand.serve(stand.peer, 80, "web")
    stand.capture(Posture.OUTBOUND, config=ALL, **shut(stand))
    assert stand.dial(stand.own(stand.peer), 80).startswith("web ")
    assert thief.accepted == 0


@pytest.mark.parametrize("mode", [Ipv6Mode.LEAVE, Ipv6Mode.REFUSE])
def test_ipv6_is_left_alone_or_refused_as_a_whole_by_setting(stand: Stand, mode: Ipv6Mode) -> None:
    stand.proxy()
    stand.serve(stand.peer, 80, "web")
    target = stand.own(stand.peer)
    stand.capture(Posture.OUTBOUND, config=CaptureConfig(outbound=OutboundScope.ALL, ipv6=mode))

    if stand.family == 4:
        assert stand.dial(target, 80).startswith("proxy ")
    elif mode is Ipv6Mode.LEAVE:
        assert stand.dial(target, 80).startswith("web ")
    else:
        with pytest.raises(ConnectionRefusedError):
            stand.dial(target, 80)
        assert stand.dial_as(PROXY_UID, target, 80).startswith("web ")
