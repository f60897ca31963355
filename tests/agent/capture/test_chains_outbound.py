"""What leaves a captured host, on a real kernel with real sockets: the outbound rows of the case table."""

import contextlib
import socket
import struct
import sys
import time
from functools import partial
from ipaddress import ip_network

import pytest

from meshagent.agent.capture import verify
from meshagent.config.settings import CaptureConfig, Exclude, FailurePolicy, Ipv6Mode, PortRange
from meshagent.lab import wait_until
from meshagent.model.marks import AGENT_MARK, PROXY_MARK
from meshagent.model.posture import Posture
from tests.agent.capture.stand import OTHER_UID, PROXY_UID, SO_MARK, Stand, mesh

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
    extra = "198.18.0.1" if stand.family == 4 else "fd77::1"
    stand.capture(Posture.OUTBOUND, mesh(extra, 8080))
    prefix, *more = ("32",) if stand.family == 4 else ("128", "nodad")
    stand.host.run(["ip", "address", "add", f"{extra}/{prefix}", "dev", "eth0", *more])
    # The kernel makes an IPv6 address a local one in a worker of its own, a moment after it answered.
    wait_until(lambda: stand.host.run(["ip", "route", "get", extra]).stdout.startswith("local "), 10, "a local address")

    for address in (extra, stand.own(stand.host), stand.loopback):
        assert stand.dial(address, 8080).startswith("own "), address


def test_an_undeclared_port_udp_and_icmp_to_a_virtual_address_fail_at_once(stand: Stand) -> None:
    stand.proxy()
    stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 6379))

    started = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.virtual, 6380)
    echo, protocol = (b"\x08", 1) if stand.family == 4 else (b"\x80", 58)
    for kind, number, payload in ((socket.SOCK_DGRAM, 0, b"query"), (socket.SOCK_RAW, protocol, echo + bytes(7))):
        with stand.host.inside(partial(socket.socket, stand.address_family, kind, number)) as sender:
            sender.settimeout(3)
            with pytest.raises(OSError) as refused:
                sender.connect((stand.virtual, 53))
                sender.send(payload)
                sender.recv(64)
            assert not isinstance(refused.value, TimeoutError)
    assert time.monotonic() - started < 2.5


def test_the_proxy_and_the_agent_go_direct(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.peer, 3306, "machine")
    stand.capture(Posture.OUTBOUND, mesh(stand.own(stand.peer), 3306))
    target = stand.own(stand.peer)

    assert stand.dial_as(PROXY_UID, target, 3306).startswith("machine ")
    assert stand.dial_as(OTHER_UID, target, 3306, mark=AGENT_MARK).startswith("machine ")
    assert stand.dial_as(OTHER_UID, target, 3306, mark=PROXY_MARK).startswith("machine ")
    assert stand.dial_as(OTHER_UID, target, 3306).startswith("proxy ")


def test_the_proxy_is_not_caught_by_the_entry_of_a_connection_it_reset(stand: Stand) -> None:
    """Such an entry keeps its redirect for 10 s; without a zone of its own the proxy would meet itself."""
    stand.serve(stand.peer, 3306, "machine")
    stand.capture(Posture.OUTBOUND, mesh(stand.own(stand.peer), 3306))
    target, port = (stand.own(stand.peer), 3306), 0
    with stand.host.listen(15001, stand.loopback) as proxy:
        for mark in (0, PROXY_MARK):
            with stand.host.socket(stand.address_family) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
                client.settimeout(3)
                client.bind(("0.0.0.0" if stand.family == 4 else "::", port))
                port = client.getsockname()[1]
                client.connect(target)
                if mark:
                    assert client.recv(64).startswith(b"machine ")
                    continue
                captured, _ = proxy.accept()
                captured.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                captured.close()
                with contextlib.suppress(ConnectionResetError):
                    client.recv(1)


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

    waited = []
    for _ in range(5):  # the fastest counts: the machine may be busy
        started = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            stand.dial(stand.virtual, 6379)
        waited.append(time.monotonic() - started)
    assert min(waited) < 0.1


def test_while_the_proxy_is_dead_literals_go_direct_and_are_counted_and_virtual_addresses_are_refused(
    stand: Stand,
) -> None:
    stand.serve(stand.peer, 3306, "machine")
    target = stand.own(stand.peer)
    stand.capture(Posture.PERMISSIVE, mesh(target, 3306), mesh(stand.virtual, 80))
    with pytest.raises(ConnectionRefusedError):
        stand.dial(target, 3306)

    stand.guard.bypass("proxy", "test")
    assert stand.dial(target, 3306).startswith("machine ")
    assert verify.around_proxy(stand.guard.listing()) == 1
    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.virtual, 80)

    stand.proxy()
    stand.guard.recapture("proxy")
    assert stand.dial(target, 3306).startswith("proxy ")


def test_with_policy_closed_nothing_goes_around_a_dead_proxy_not_even_when_it_was_open_before(stand: Stand) -> None:
    stand.serve(stand.peer, 3306, "machine")
    target = stand.own(stand.peer)
    stand.capture(Posture.PERMISSIVE, mesh(target, 3306))
    stand.guard.bypass("proxy", "test")
    assert stand.dial(target, 3306).startswith("machine ")

    stand.capture(Posture.STRICT, mesh(target, 3306))
    stand.guard.bypass("proxy", "test")
    with pytest.raises(ConnectionRefusedError):
        stand.dial(target, 3306)


@pytest.mark.parametrize("policy", [FailurePolicy.OPEN, FailurePolicy.CLOSED])
def test_a_literal_for_which_the_proxy_has_no_port_goes_direct_or_nowhere_by_policy(
    stand: Stand, policy: FailurePolicy
) -> None:
    """A stranger stands on the port where it would arrive; he gets nothing either way."""
    thief = stand.proxy()
    stand.serve(stand.peer, 3306, "machine")
    stand.serve(stand.peer, 3307, "machine")
    target = stand.own(stand.peer)
    config = CaptureConfig(on_proxy_failure=policy, exclude=Exclude(uids=(OTHER_UID,)))
    with stand.open(target, 3306) as before:
        stand.capture(Posture.OUTBOUND, unserved=frozenset({mesh(target, 3306)}), config=config)
        assert before.says(), "what is open stays open"
    assert stand.dial(target, 3307).startswith("machine "), "never another port"
    assert stand.dial_as(OTHER_UID, target, 3306).startswith("machine "), "never who is excluded"
    assert stand.dial_as(PROXY_UID, target, 3306).startswith("machine "), "never the proxy"
    if policy is FailurePolicy.OPEN:
        assert stand.dial(target, 3306).startswith("machine ")
    else:
        with pytest.raises(ConnectionRefusedError):
            stand.dial(target, 3306)
    assert thief.accepted == 0
    stand.capture(Posture.OUTBOUND, mesh(target, 3306), config=config)
    assert stand.dial(target, 3306).startswith("proxy "), "the port was taken back"


def test_excluded_users_ports_and_networks_go_direct(stand: Stand) -> None:
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


def test_an_excluded_group_or_interface_goes_direct(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.peer, 3306, "machine")
    target = stand.own(stand.peer)
    for exclude in (
        Exclude(gids=(OTHER_UID,)),
        Exclude(interfaces=("eth0",)),
        Exclude(gids=(1,), interfaces=("eth9",)),
    ):
        stand.capture(Posture.OUTBOUND, mesh(target, 3306), config=CaptureConfig(exclude=exclude))
        reached = stand.host.run(
            ["setpriv", f"--regid={OTHER_UID}", "--clear-groups", sys.executable, "-c", _READ, target]
        )
        assert reached.stdout.startswith("proxy " if exclude.gids == (1,) else "machine "), exclude


_READ = "import socket, sys; print(socket.create_connection((sys.argv[1], 3306), 3).makefile().readline())"


def test_port_22_of_a_claimed_machine_is_direct_unless_forced(stand: Stand) -> None:
    stand.proxy()
    stand.serve(stand.peer, 22, "sshd")
    target = stand.own(stand.peer)
    intent = stand.capture(Posture.OUTBOUND, mesh(target, 22))
    assert [claim.code for claim in intent.refused] == ["ssh"]
    assert stand.dial(target, 22).startswith("sshd ")

    stand.capture(Posture.OUTBOUND, mesh(target, 22), config=CaptureConfig(force_ports=(PortRange(22, 22),)))
    assert stand.dial(target, 22).startswith("proxy ")


@pytest.mark.parametrize("mode", [Ipv6Mode.CAPTURE, Ipv6Mode.LEAVE, Ipv6Mode.REFUSE])
def test_ipv6_is_captured_left_alone_or_refused_and_ipv4_never_notices(stand: Stand, mode: Ipv6Mode) -> None:
    stand.proxy()
    stand.serve(stand.peer, 3306, "machine")
    stand.serve(stand.peer, 3307, "machine")
    target = stand.own(stand.peer)
    config = CaptureConfig(ipv6=mode, exclude=Exclude(uids=(OTHER_UID,)))
    stand.capture(Posture.OUTBOUND, mesh(target, 3306), mesh(stand.virtual, 80), config=config)

    assert stand.dial(target, 3307).startswith("machine "), "never another port"
    assert stand.dial_as(OTHER_UID, target, 3306).startswith("machine "), "never who is excluded"
    if stand.family == 4 or mode is Ipv6Mode.CAPTURE:
        assert stand.dial(target, 3306).startswith("proxy ")
        assert stand.dial(stand.virtual, 80).startswith("proxy ")
    elif mode is Ipv6Mode.LEAVE:
        assert stand.dial(target, 3306).startswith("machine ")
    else:
        for address, port in ((target, 3306), (stand.virtual, 80)):
            with pytest.raises(ConnectionRefusedError):
                stand.dial(address, port)
        assert stand.dial_as(PROXY_UID, target, 3306).startswith("machine "), "never the proxy"
