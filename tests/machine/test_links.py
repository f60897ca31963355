"""Gateways of every kind of default route, and addresses that can't be used."""

import pytest

from meshagent.lab import Host, Lab
from meshagent.machine import links

pytestmark = pytest.mark.root


@pytest.fixture
def web(lab: Lab) -> Host:
    return lab.host("web")


def test_gateways_of_single_and_of_several_next_hops_in_any_table(web: Host) -> None:
    v4, v6 = (address.rpartition(separator)[0] for address, separator in ((web.address4, "."), (web.address6, ":")))
    web.run(["ip", "route", "replace", "default", "via", f"{v4}.250"])
    web.run(["ip", "-6", "route", "flush", "default"])
    hops = [word for last in ("fa", "fb") for word in ("nexthop", "via", f"{v6}:{last}", "dev", "eth0")]
    web.run(["ip", "-6", "route", "add", "default", *hops])
    web.run(["ip", "route", "add", "default", "via", f"{v4}.251", "table", "77"])
    web.run(["ip", "route", "add", "10.77.0.0/16", "via", f"{v4}.252"])
    found = web.inside(lambda: {str(ip) for ip in links.gateways()})
    assert found == {f"{v4}.250", f"{v4}.251", f"{v6}:fa", f"{v6}:fb"}


def test_addresses_that_cannot_be_used_now_are_left_out(web: Host) -> None:
    web.run(["ip", "addr", "add", "fd00::dead/64", "dev", "eth0", "nodad", "preferred_lft", "0"])
    web.run(["ip", "addr", "add", "169.254.7.7/16", "dev", "eth0", "scope", "link"])
    web.run(["ip", "addr", "add", "192.0.2.7", "peer", "192.0.2.8", "dev", "eth0"])
    found = web.inside(lambda: {str(each.ip) for each in links.addresses() if each.interface == "eth0"})
    assert found == {web.address4, web.address6, "192.0.2.7"}
