"""Addresses, and routes and rules of ours beside others', in a network namespace of their own."""

import asyncio
from ipaddress import ip_address, ip_network

import pytest

from meshagent.lab import Host, Lab
from meshagent.lab.snapshot import diff
from meshagent.machine import netlink
from meshagent.machine.netlink import Route, Rule
from meshagent.model.errors import MeshagentError
from meshagent.model.marks import CLIENT_SOURCE_MARK, ROUTE_TABLE, RULE_PRIORITY

pytestmark = pytest.mark.root

ROUTES = (
    Route(ip_network("240.240.0.0/16")),
    Route(ip_network("2001:2::/48")),
    Route(ip_network("0.0.0.0/0"), table=ROUTE_TABLE),
    Route(ip_network("::/0"), table=ROUTE_TABLE),
)
#: Of two that differ in the device alone the kernel may take either for the one without.
RULES = tuple(
    Rule(version, CLIENT_SOURCE_MARK, ROUTE_TABLE, RULE_PRIORITY + after, device)
    for version in (4, 6)
    for after, device in enumerate(("", "lo"))
)


@pytest.fixture
def web(lab: Lab) -> Host:
    return lab.host("web")


def test_addresses_are_the_hosts_own_without_loopback(web: Host) -> None:
    found = web.inside(netlink.addresses)
    assert [str(each.ip) for each in found] == [web.address4, web.address6]
    assert {each.interface for each in found} == {"eth0"}


def test_the_source_towards_a_destination_is_the_kernels_choice(web: Host) -> None:
    for gateway, own in ((web.address4, web.address4), ("192.0.2.1", web.address4), ("2001:db8::1", web.address6)):
        assert str(web.inside(lambda to=gateway: netlink.preferred_source(ip_address(to)))) == own  # type: ignore[misc]
    web.run(["ip", "route", "del", "default"])
    assert web.inside(lambda: netlink.preferred_source(ip_address("192.0.2.1"))) is None


def test_routes_and_rules_are_set_twice_without_harm_and_leave_no_trace(web: Host) -> None:
    web.run(["ip", "rule", "add", "fwmark", "7", "table", "77", "priority", "77"])
    web.run(["ip", "route", "add", "10.99.0.0/16", "dev", "eth0", "table", "77"])
    before = web.snapshot()
    for _ in range(2):
        web.inside(lambda: netlink.set_ours(ROUTES, RULES))
    assert set(web.inside(netlink.our_routes)) == set(ROUTES)
    assert set(web.inside(netlink.our_rules)) == set(RULES)
    assert len(web.inside(netlink.our_routes)) == len(ROUTES)
    assert len(web.inside(netlink.our_rules)) == len(RULES)
    assert "local" in web.run(["ip", "route", "get", "240.240.0.1"]).stdout
    assert diff(before, web.snapshot())
    assert web.inside(netlink.remove_ours) == len(ROUTES) + len(RULES)
    assert web.inside(netlink.remove_ours) == 0
    assert diff(before, web.snapshot()) == []


def test_a_route_of_somebody_else_is_not_taken(web: Host) -> None:
    web.run(["ip", "route", "add", "local", "240.240.0.0/16", "dev", "lo", "table", "main"])
    before = web.snapshot()
    with pytest.raises(MeshagentError, match="already has another route to 240"):
        web.inside(lambda: netlink.ensure_route(ROUTES[0]))
    web.inside(netlink.remove_ours)
    assert diff(before, web.snapshot()) == []


def test_what_is_no_longer_wanted_goes_and_the_rest_stays(web: Host) -> None:
    web.inside(lambda: netlink.set_ours(ROUTES, RULES))
    web.inside(lambda: netlink.set_ours(ROUTES[:1], RULES[1:]))
    assert web.inside(netlink.our_routes) == ROUTES[:1]
    assert set(web.inside(netlink.our_rules)) == set(RULES[1:])


def test_calls_work_from_an_event_loop(web: Host) -> None:
    async def call() -> tuple[Route, ...]:
        netlink.ensure_route(ROUTES[0])
        return netlink.our_routes()

    assert web.inside(lambda: asyncio.run(call())) == ROUTES[:1]


def test_a_refusal_of_the_kernel_is_an_error_in_words(web: Host) -> None:
    with pytest.raises(MeshagentError, match="no interface nowhere0"):
        web.inside(lambda: netlink.ensure_route(Route(ip_network("240.240.0.0/16"), "nowhere0")))


@pytest.mark.parametrize(
    "change",
    [
        ["ip", "addr", "add", "10.1.2.3/32", "dev", "lo"],
        ["ip", "-6", "addr", "add", "fd00::9/128", "dev", "lo", "nodad"],
        ["ip", "route", "add", "10.98.0.0/16", "dev", "eth0"],
        ["ip", "-6", "rule", "add", "fwmark", "9", "table", "99"],
    ],
    ids=["address", "ipv6 address", "route", "rule"],
)
def test_every_change_is_noticed(web: Host, change: list[str]) -> None:
    async def notice() -> None:
        async with asyncio.timeout(30):
            seen = netlink.changes(settle=0.01)
            first = asyncio.ensure_future(anext(seen))
            await asyncio.sleep(0)  # lets the watch begin
            web.run(change)
            await first
            await seen.aclose()  # type: ignore[attr-defined]

    web.inside(lambda: asyncio.run(notice()))
