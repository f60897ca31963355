"""``capture.outbound: all``: everything that leaves goes through the proxy, except what must not."""

from ipaddress import ip_address

import pytest

from meshagent.agent.capture import verify
from meshagent.config.settings import CaptureConfig, Exclude, Ipv6Mode, OutboundScope, PortRange
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
