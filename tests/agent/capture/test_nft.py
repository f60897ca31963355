"""Rules as a network engineer reads them: goldens, and the kernel's own opinion on each.

``MESHAGENT_UPDATE_GOLDENS=1`` writes tests/golden/nft anew; read the difference before committing it.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import collapse_addresses, ip_address, ip_network, summarize_address_range
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshagent.agent.capture import nft
from meshagent.agent.capture.intent import decide
from meshagent.agent.capture.values import Intent, Wishes
from meshagent.config.settings import (
    CaptureConfig,
    Exclude,
    FailurePolicy,
    InboundScope,
    Ipv6Mode,
    OutboundScope,
    PortRange,
    RedirectMode,
)
from meshagent.guard import readback, text
from meshagent.guard.libnftables import Context
from meshagent.model.address import MeshAddress, parse_ip
from meshagent.model.cgroup import Cgroup
from meshagent.model.doors import Door
from meshagent.model.marks import ANCHOR_TABLE, TABLE
from meshagent.model.policy import HostPolicy, RedirectReason
from meshagent.model.posture import PlaintextMode, Posture
from tests.agent.capture.builders import decided, declared, host_facts

GOLDEN = Path(__file__).parents[2] / "golden/nft"
MESH = ("240.240.0.7:6379", "240.240.0.8:80", "[2001:2::7]:6379", "10.1.2.3:3306", "[fd00::77]:3306")
SERVICES = (declared("web", 80, 8080), declared("cache", 6379), declared("ssh", 22))
ALL = OutboundScope.ALL
EXCLUDE = Exclude(
    ports=(PortRange(8000, 8010), PortRange(9000, 9000)),
    cidrs=(ip_network("10.3.0.0/16"), ip_network("fd03::/16")),
    uids=(1500,),
    gids=(1501,),
    interfaces=("eth1",),
)

CASES: dict[str, Intent] = {
    "outbound": decided(Posture.OUTBOUND, *MESH),
    "permissive": decided(Posture.PERMISSIVE, *MESH, services=SERVICES, capture_dns=True),
    "strict": decided(Posture.STRICT, *MESH, services=SERVICES),
    "permissive-one-port-strict": decided(
        Posture.PERMISSIVE, *MESH, services=SERVICES, policy=HostPolicy({6379: PlaintextMode.STRICT})
    ),
    "ipv4-only": decided(
        Posture.PERMISSIVE, *MESH, services=SERVICES, capture_dns=True, facts=host_facts(ipv6_usable=False)
    ),
    "ipv6-refused": decided(Posture.OUTBOUND, *MESH, config=CaptureConfig(ipv6=Ipv6Mode.REFUSE)),
    "excluded": decided(Posture.OUTBOUND, *MESH, config=CaptureConfig(exclude=EXCLUDE)),
    "empty-mesh": decided(Posture.OUTBOUND),
    "drain": decided(Posture.OBSERVE, *MESH, draining=True),
}

#: What only some hosts ask for.
MORE: dict[str, Intent] = {
    "outbound-all": decided(Posture.OUTBOUND, *MESH, config=CaptureConfig(outbound=ALL, exclude=EXCLUDE)),
    "outbound-all-ipv6-refused": decided(
        Posture.STRICT, *MESH, config=CaptureConfig(outbound=ALL, ipv6=Ipv6Mode.REFUSE)
    ),
    "outbound-all-no-port": decided(
        Posture.STRICT,
        *MESH[:3],
        config=CaptureConfig(outbound=ALL),
        doors=frozenset({(Door.PASSTHROUGH, 6)}),
        shut=frozenset({4}),
    ),
    "bridges": decided(Posture.STRICT, *MESH, config=CaptureConfig(bridges=("docker0", "br-a1"), exclude=EXCLUDE)),
    "inbound-tproxy": decided(
        Posture.PERMISSIVE, *MESH, services=SERVICES, config=CaptureConfig(inbound=InboundScope.ALL, exclude=EXCLUDE)
    ),
    "inbound-tproxy-closed": decided(
        Posture.STRICT, *MESH, services=SERVICES, config=CaptureConfig(inbound=InboundScope.ALL)
    ),
    "inbound-redirect": decided(
        Posture.PERMISSIVE,
        *MESH,
        services=SERVICES,
        config=CaptureConfig(inbound=InboundScope.ALL, mode=RedirectMode.REDIRECT),
        policy=HostPolicy({6379: PlaintextMode.STRICT}),
    ),
}
#: What only nft does as yet.
PORTS: dict[str, Intent] = {
    "redirected-ports": decided(
        Posture.PERMISSIVE,
        *MESH,
        services=SERVICES,
        policy=HostPolicy({6379: PlaintextMode.STRICT}, dict.fromkeys((6379, 8080), RedirectReason.MUTUAL_TLS)),
    ),
    "redirected-port-by-redirect": decided(
        Posture.STRICT,
        *MESH,
        services=SERVICES,
        config=CaptureConfig(mode=RedirectMode.REDIRECT),
        policy=HostPolicy(redirect={8080: RedirectReason.MUTUAL_TLS}),
    ),
}
SHOP = Cgroup("shop.service", "unified/system.slice/shop.service", 2, 4711)
BATCH = Cgroup("batch.slice", r"unified/my\x2dbatch.slice/batch.slice", 2, 4712)
RUNS = host_facts(cgroups=(BATCH, SHOP))
#: Of units: the kernel takes them only where such units run, see test_chains_units.
UNITS: dict[str, Intent] = {
    "units": decided(
        Posture.OUTBOUND,
        *MESH,
        config=CaptureConfig(units=("shop.service", "gone.service"), outbound=ALL),
        facts=RUNS,
    ),
    "units-excluded": decided(
        Posture.OUTBOUND,
        *MESH,
        config=CaptureConfig(exclude=Exclude(units=("batch.slice", "gone.service"))),
        facts=RUNS,
    ),
    "units-none-runs": decided(Posture.OUTBOUND, *MESH, config=CaptureConfig(units=("gone.service",)), facts=RUNS),
}
EVERY = CASES | MORE | PORTS | UNITS


def held(listing: str) -> dict[str, set[str]]:
    """The sets of a listing, elements as nft writes them but addresses as Python does (``::1.2.3.4`` and ``::102:304``
    are one address)."""
    found: dict[str, set[str]] = {}
    for kind, body in readback.objects(listing):
        if kind == "set":
            values = (item["concat"] if isinstance(item, dict) else [item] for item in body.get("elem", ()))
            found[body["name"]] = {" . ".join(str(parse_ip(str(part)) or part) for part in value) for value in values}
    return found


@contextmanager
def kernel() -> Iterator[Context]:
    """A context in the network namespace the tests run in; nothing is committed."""
    context = Context()
    try:
        yield context
    finally:
        context.close()


@pytest.mark.parametrize("name", EVERY)
def test_the_rules_are_those_that_were_approved(name: str) -> None:
    path, table = GOLDEN / f"{name}.nft", nft.render(EVERY[name]).table
    if os.environ.get("MESHAGENT_UPDATE_GOLDENS"):
        path.write_text(table)
    assert table == path.read_text()


def test_the_anchor_is_the_one_that_was_approved() -> None:
    path = GOLDEN / "anchor.nft"
    if os.environ.get("MESHAGENT_UPDATE_GOLDENS"):
        path.write_text(nft.ANCHOR)
    assert path.read_text() == nft.ANCHOR


def test_every_golden_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.nft")} == {*EVERY, "anchor"}


@pytest.mark.root
@pytest.mark.parametrize("name", CASES | MORE | PORTS)
def test_the_kernel_accepts_the_rules_and_every_gate(name: str) -> None:
    ruleset = nft.render(EVERY[name])
    gates = "".join(gate.bypass + gate.recapture for gate in ruleset.gates.values())
    with kernel() as context:
        context.check(ruleset.anchor + ruleset.table + gates)


ANY_ADDRESS = st.one_of(
    st.ip_addresses(), st.ip_addresses(network="240.240.0.0/16"), st.ip_addresses(network="2001:2::/48")
)


@pytest.mark.root
@settings(max_examples=25, deadline=None)
@given(
    mesh=st.frozensets(st.builds(MeshAddress, ANY_ADDRESS, st.integers(1, 65535)), max_size=8),
    ports=st.frozensets(st.integers(1, 65535), max_size=5),
)
def test_the_kernel_holds_exactly_what_was_decided(mesh: frozenset[MeshAddress], ports: frozenset[int]) -> None:
    services = tuple(declared(f"s{port}", port) for port in ports)
    intent = decide(Wishes(Posture.PERMISSIVE, mesh=mesh, services=services), host_facts())
    with kernel() as context:
        context.run(nft.render(intent).table)
        try:
            sets = held(context.table_json(TABLE) or "")
        finally:
            context.run(f"delete table inet {TABLE}\n")
    wanted = {name: set(elements) for name, elements in nft.address_sets(intent).items()}
    assert {name: sets[name] for name in wanted} == wanted
    assert sets.get("counted_ports", set()) == set(map(str, intent.counted_ports))


RANGES = st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda pair: PortRange(min(pair), max(pair)))
NETWORKS = st.one_of(
    st.builds(lambda ip, length: ip_network((ip, length), strict=False), st.ip_addresses(v=4), st.integers(1, 32)),
    st.builds(lambda ip, length: ip_network((ip, length), strict=False), st.ip_addresses(v=6), st.integers(1, 128)),
)
EXCLUDES = st.builds(
    Exclude,
    ports=st.lists(RANGES, max_size=40).map(tuple),
    cidrs=st.lists(NETWORKS, max_size=8).map(tuple),
    uids=st.lists(st.integers(0, 2**32 - 2), max_size=5).map(tuple),
    gids=st.lists(st.integers(0, 2**32 - 2), max_size=5).map(tuple),
    interfaces=st.lists(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}", fullmatch=True), max_size=4).map(tuple),
)


@pytest.mark.root
@settings(max_examples=25, deadline=None)
@given(exclude=EXCLUDES, scope=st.sampled_from(OutboundScope))
def test_the_kernel_holds_every_exclusion_exactly(exclude: Exclude, scope: OutboundScope) -> None:
    """40 ranges that overlap, networks in networks, names with dots: what comes back is what was meant."""
    config = CaptureConfig(exclude=exclude, outbound=scope)
    intent = decide(Wishes(Posture.OUTBOUND, config=config), host_facts())
    with kernel() as context:
        context.run(nft.render(intent).table)
        try:
            rules = [body for kind, body in readback.objects(context.table_json(TABLE) or "") if kind == "rule"]
        finally:
            context.run(f"delete table inet {TABLE}\n")
    for chain in ("mesh", "everything") if intent.all_families else ("mesh",):
        matches = _excluded(rules, chain)
        ports = {port for value in matches.get("ports excluded", ()) for port in _numbers(value)}
        assert ports == {port for item in exclude.ports for port in range(item.first, item.last + 1)}
        found = {network for value in matches.get("networks excluded", ()) for network in _networks(value)}
        for version in (4, 6):  # the same addresses, though neighbours may have been joined
            kept = [net for net in found if net.version == version]
            asked = [net for net in exclude.cidrs if net.version == version]
            assert list(collapse_addresses(kept)) == list(collapse_addresses(asked))
        assert set(map(str, matches.get("interfaces excluded", ()))) == set(exclude.interfaces)
        assert len(matches.get("users excluded", ())) == len(set(exclude.uids))
        assert len(matches.get("groups excluded", ())) == len(set(exclude.gids))


def _excluded(rules: list[Any], chain: str) -> dict[str, list[Any]]:
    """Reason -> what the rule of this chain with this reason matches."""
    found: dict[str, list[Any]] = {}
    for rule in rules:
        reason = rule.get("comment", "").removesuffix(" in agent.yaml")
        if rule["chain"] == chain and reason != rule.get("comment"):
            right = next(each["match"]["right"] for each in rule["expr"] if "match" in each)
            found.setdefault(reason, []).extend(right["set"] if isinstance(right, dict) and "set" in right else [right])
    return found


def _numbers(value: Any) -> range:
    first, last = value["range"] if isinstance(value, dict) else (value, value)
    return range(first, last + 1)


def _networks(value: Any) -> Iterable[Any]:
    """nft writes neighbours of different sizes as one range."""
    if isinstance(value, dict) and "range" in value:
        return summarize_address_range(*map(ip_address, value["range"]))
    return [ip_network(f"{value['prefix']['addr']}/{value['prefix']['len']}" if isinstance(value, dict) else value)]


@pytest.mark.parametrize("name", EVERY)
def test_the_guard_accepts_the_text(name: str) -> None:
    ruleset = nft.render(EVERY[name])
    text.require_table(ruleset.table, TABLE)
    text.require_table(ruleset.anchor, ANCHOR_TABLE)
    for gate in ruleset.gates.values():
        text.require_updates(gate.bypass, TABLE)
        text.require_updates(gate.recapture, TABLE)


@pytest.mark.parametrize("name", EVERY)
def test_every_rule_has_a_counter_and_a_reason(name: str) -> None:
    rules = list(_rules(nft.render(EVERY[name]).table.splitlines()))
    assert rules
    for rule in rules:
        assert " counter " in f" {rule} ", rule
        assert re.search(r' comment "[^"]{8,127}"$', rule), rule


def _rules(lines: list[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        if line.startswith("\tchain "):
            inside = True
        elif line == "\t}":
            inside = False
        elif inside and not line.strip().startswith("type "):
            yield line.strip()


@pytest.mark.parametrize("name", EVERY)
def test_tcp_verdicts_that_could_hit_an_open_connection_match_only_syn(name: str) -> None:
    """Redirects come behind the SYN exemption, rejects of ports match SYN; only virtual addresses, where no open
    connection can be, are refused whatever the packet."""
    table = nft.render(EVERY[name]).table
    for line in table.splitlines():
        if "reject with tcp reset" in line and "dport" in line:
            assert "tcp flags & (fin|syn|rst|ack) == syn" in line, line
    if "chain mesh {" in table:
        assert table.split("chain mesh {\n")[1].lstrip().startswith("tcp flags & (fin|syn|rst|ack) != syn")


def test_observe_means_no_table_at_all() -> None:
    ruleset = nft.render(decided(Posture.OBSERVE, *MESH))
    assert (ruleset.table, ruleset.anchor, dict(ruleset.gates)) == ("", "", {})


def test_only_with_policy_open_the_table_dies_with_the_guard() -> None:
    assert nft.render(decided(Posture.PERMISSIVE)).owner
    assert not nft.render(decided(Posture.STRICT)).owner
    assert not nft.render(decided(config=CaptureConfig(on_proxy_failure=FailurePolicy.CLOSED))).owner


def test_only_with_policy_open_there_is_a_way_around_the_proxy() -> None:
    assert "proxy" in nft.render(decided(Posture.PERMISSIVE)).gates
    assert set(nft.render(decided(Posture.STRICT, capture_dns=True)).gates) == {"hung", "resolver"}


def test_equal_intents_render_to_equal_text_in_whatever_order_things_came() -> None:
    first = decided(Posture.PERMISSIVE, *MESH, services=SERVICES)
    second = decided(Posture.PERMISSIVE, *reversed(MESH), services=tuple(reversed(SERVICES)))
    assert nft.render(first) == nft.render(second)
