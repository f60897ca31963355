"""Routes and rules that belong to an intent."""

from ipaddress import ip_network

from meshagent.agent.capture import routing
from meshagent.agent.capture.routing import Route, Rule
from meshagent.config.settings import CaptureConfig, Ipv6Mode
from meshagent.model.marks import PUBLISHED_MARK, ROUTE_TABLE, RULE_PRIORITY
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided, host_facts

EVERYTHING4, EVERYTHING6 = ip_network("0.0.0.0/0"), ip_network("::/0")
#: Answers of this host's own processes, and of its containers; IPv4 also asks them for the way back to a container.
BOTH = {v: {Rule(v), Rule(v, PUBLISHED_MARK, priority=RULE_PRIORITY + 1)} for v in (4, 6)}
RULES = {4: BOTH[4] | {Rule(4, PUBLISHED_MARK, 254, RULE_PRIORITY, device="lo")}, 6: BOTH[6]}


def test_virtual_ranges_go_over_lo_and_marked_answers_are_delivered_here() -> None:
    plan = routing.plan(decided(Posture.OUTBOUND))
    assert plan.routes == {
        Route(ip_network("240.240.0.0/16")),
        Route(ip_network("2001:2::/48")),
        Route(EVERYTHING4, ROUTE_TABLE, local=True),
        Route(EVERYTHING6, ROUTE_TABLE, local=True),
    }
    assert plan.rules == RULES[4] | RULES[6]


def test_a_host_without_ipv6_gets_nothing_of_ipv6() -> None:
    plan = routing.plan(decided(Posture.OUTBOUND, facts=host_facts(ipv6_usable=False)))
    assert {route.network.version for route in plan.routes} == {4}
    assert plan.rules == RULES[4]


def test_ipv6_left_alone_has_no_virtual_route_but_still_serves_ipv6_callers() -> None:
    plan = routing.plan(decided(Posture.PERMISSIVE, config=CaptureConfig(ipv6=Ipv6Mode.LEAVE)))
    assert Route(ip_network("2001:2::/48")) not in plan.routes
    assert Rule(6) in plan.rules


def test_observe_needs_none_unless_connections_are_still_open() -> None:
    assert routing.plan(decided(Posture.OBSERVE)) == routing.Routing()
    assert routing.plan(decided(Posture.OBSERVE, draining=True)).rules == RULES[4] | RULES[6]
