"""``capture.bridges``: containers behind a named bridge reach the mesh; all else they send is forwarded as always."""

import socket
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_network

import pytest

from meshagent.config.settings import CaptureConfig, Exclude, FailurePolicy, PortRange
from meshagent.lab.host import Host
from meshagent.model.doors import Door
from meshagent.model.ports import BRIDGED
from meshagent.model.posture import Posture
from tests.agent.capture.stand import Server, Stand, mesh

pytestmark = pytest.mark.root


BRIDGES = CaptureConfig(bridges=("docker0",))

#: As docker sets it up: containers leave with the host's address.
MASQUERADE = """
table inet theirs {
  chain post { type nat hook postrouting priority 100; iifname "docker0" oifname "eth0" masquerade; }
}
"""


@pytest.fixture
def container(request: pytest.FixtureRequest, stand: Stand) -> Iterator[Host]:
    """A host whose only way out is the bridge docker0 of the captured one; parameter: br_netfilter, on by default."""
    inner = stand.lab.host(f"container-{stand.host.name}")
    stand.host.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
    calls = [f"net.bridge.bridge-nf-call-{name}={getattr(request, 'param', 1)}" for name in ("iptables", "ip6tables")]
    stand.host.run(["sysctl", "-qew", *calls])  # -e: a kernel without it behaves like 0
    stand.host.run(["nft", "-f", "-"], input=MASQUERADE)
    inner.run(["ip", "link", "set", "eth0", "down"])
    for words in (
        "link add docker0 type bridge",
        f"link add veth1 type veth peer name inner netns {inner.namespaces.holder}",
        "link set veth1 master docker0 up",
        "address add 172.30.0.1/24 dev docker0",
        "address add fd99::1/64 dev docker0 nodad",
        "link set docker0 up",
    ):
        stand.host.run(["ip", *words.split()])
    for words in (
        "address add 172.30.0.2/24 dev inner",
        "address add fd99::2/64 dev inner nodad",
        "link set inner up",
        "route replace default via 172.30.0.1",
        "-6 route replace default via fd99::1",
    ):
        inner.run(["ip", *words.split()])
    yield inner


def own(stand: Stand) -> str:
    return "172.30.0.2" if stand.family == 4 else "fd99::2"


def bridge_door(stand: Stand) -> Server:
    """What stands where Envoy's listener for containers is."""
    return stand.serve(stand.host, BRIDGED, "proxy")


@pytest.mark.parametrize("container", [0, 1], ids=["plain", "br_netfilter"], indirect=True)
def test_a_container_reaches_the_mesh_and_everything_else_is_forwarded_as_before(stand: Stand, container: Host) -> None:
    bridge_door(stand)
    stand.serve(stand.peer, 3306, "machine")
    stand.serve(stand.peer, 80, "web")
    target = stand.own(stand.peer)
    with stand.open(target, 3306, container) as before:
        assert before.greeting == f"machine {stand.own(stand.host)} {target} 3306"
        stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 6379), mesh(target, 3306), config=BRIDGES)

        assert stand.dial(stand.virtual, 6379, container) == f"proxy {own(stand)} {stand.virtual} 6379"
        assert stand.dial(target, 80, container).startswith("web ")
        with stand.open(target, 3306, container) as captured:
            assert captured.greeting == f"proxy {own(stand)} {target} 3306"
            assert before.says() and captured.says()
            stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 6379), config=BRIDGES)
            assert before.says() and captured.says(), "though its service has left the mesh"
        assert stand.dial(target, 3306, container).startswith("machine ")


def test_a_container_behind_a_bridge_that_is_not_named_is_not_touched(stand: Stand, container: Host) -> None:
    bridge_door(stand)
    stand.proxy()
    stand.serve(stand.peer, 3306, "machine")
    target = stand.own(stand.peer)
    for config in (CaptureConfig(), CaptureConfig(bridges=("br-other",))):
        stand.capture(Posture.OUTBOUND, mesh(target, 3306), config=config)
        assert stand.dial(target, 3306, container).startswith("machine ")
        assert stand.dial(target, 3306).startswith("proxy "), "the host itself is captured"


def test_an_undeclared_port_or_udp_of_a_virtual_address_is_refused_at_once(stand: Stand, container: Host) -> None:
    bridge_door(stand)
    stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 6379), config=BRIDGES)

    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.virtual, 6380, container)
    with container.inside(partial(socket.socket, stand.address_family, socket.SOCK_DGRAM)) as sender:
        sender.settimeout(3)
        sender.connect((stand.virtual, 53))
        sender.send(b"query")
        with pytest.raises(OSError) as refused:
            sender.recv(64)
        assert not isinstance(refused.value, TimeoutError)


def test_nobody_reaches_the_listener_made_for_containers_by_himself(stand: Stand, container: Host) -> None:
    proxy = bridge_door(stand)
    stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 6379), config=BRIDGES)

    for address in ("172.30.0.1" if stand.family == 4 else "fd99::1", stand.own(stand.host)):
        with pytest.raises(ConnectionRefusedError):
            stand.dial(address, BRIDGED, container)
    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.loopback, BRIDGED)
    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.own(stand.host), BRIDGED, stand.peer)
    assert proxy.accepted == 0


def test_what_is_excluded_and_the_host_itself_stay_direct(stand: Stand, container: Host) -> None:
    bridge_door(stand)
    stand.serve(stand.peer, 3306, "machine")
    stand.serve(stand.host, 3306, "host")
    target = stand.own(stand.peer)
    for exclude in (Exclude(ports=(PortRange(3300, 3310),)), Exclude(cidrs=(ip_network(target),))):
        config = CaptureConfig(bridges=("docker0",), exclude=exclude)
        stand.capture(Posture.OUTBOUND, mesh(target, 3306), config=config)
        assert stand.dial(target, 3306, container).startswith("machine ")
    assert stand.dial(stand.own(stand.host), 3306, container).startswith("host ")


def test_without_a_proxy_literals_are_forwarded_and_virtual_addresses_refused_or_by_policy_closed_both(
    stand: Stand, container: Host
) -> None:
    stand.serve(stand.peer, 3306, "machine")
    target = stand.own(stand.peer)
    addresses = (mesh(target, 3306), mesh(stand.virtual, 80))
    stand.capture(Posture.OUTBOUND, *addresses, config=BRIDGES)
    with pytest.raises(ConnectionRefusedError):
        stand.dial(target, 3306, container)
    stand.guard.bypass("proxy", "test")
    assert stand.dial(target, 3306, container).startswith("machine ")
    with pytest.raises(ConnectionRefusedError):
        stand.dial(stand.virtual, 80, container)

    config = CaptureConfig(bridges=("docker0",), on_proxy_failure=FailurePolicy.CLOSED)
    stand.capture(Posture.OUTBOUND, *addresses, config=config)
    stand.guard.bypass("proxy", "test")
    for hung in (False, True):
        if hung:  # the kernel still accepts for it
            bridge_door(stand)
            stand.refuse_as_if_hung()
        for address, port in ((target, 3306), (stand.virtual, 80)):
            with pytest.raises(ConnectionRefusedError):
                stand.dial(address, port, container)


def test_containers_wait_until_the_proxy_has_a_listener_for_them(stand: Stand, container: Host) -> None:
    bridge_door(stand)
    stand.serve(stand.peer, 3306, "machine")
    target = stand.own(stand.peer)
    intent = stand.capture(Posture.OUTBOUND, mesh(target, 3306), config=BRIDGES, doors=frozenset())
    assert "capture.bridges" in " ".join(intent.waiting)
    assert stand.dial(target, 3306, container).startswith("machine ")
    stand.capture(Posture.OUTBOUND, mesh(target, 3306), config=BRIDGES, doors=frozenset({(Door.BRIDGES, stand.family)}))
    assert stand.dial(target, 3306, container).startswith("proxy ")
