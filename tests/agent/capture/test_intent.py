"""What is captured, spared and refused, and why."""

import re
from dataclasses import replace
from ipaddress import IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.agent.capture import nft
from meshagent.agent.capture.intent import decide, wanted_doors
from meshagent.agent.capture.values import Intent, Ipv6, Mode, Wishes
from meshagent.config.settings import (
    Backend,
    CaptureConfig,
    Exclude,
    FailurePolicy,
    InboundScope,
    Ipv6Mode,
    OutboundScope,
    PortRange,
    RedirectMode,
)
from meshagent.model.address import MeshAddress
from meshagent.model.cgroup import Cgroup
from meshagent.model.doors import Door, OpenDoor, PortDoor
from meshagent.model.errors import MeshagentError, UsageError
from meshagent.model.policy import HostPolicy, RedirectReason
from meshagent.model.posture import PlaintextMode, Posture
from tests.agent.capture.builders import PROXY_UID, decided, declared, host_facts, pair


@pytest.mark.parametrize(
    ("posture", "counted", "strict"),
    [
        (Posture.OUTBOUND, (), ()),
        (Posture.PERMISSIVE, (80,), ()),
        (Posture.STRICT, (), (80,)),
    ],
)
def test_the_posture_decides_about_plain_text(posture: Posture, counted: tuple[int], strict: tuple[int]) -> None:
    intent = decided(posture, services=(declared("web", 80),))
    assert (intent.counted_ports, intent.strict_ports) == (counted, strict)


@pytest.mark.parametrize(
    ("posture", "mesh", "strict"),
    [
        (Posture.PERMISSIVE, PlaintextMode.STRICT, True),
        (Posture.STRICT, PlaintextMode.PERMISSIVE, True),
        (Posture.PERMISSIVE, PlaintextMode.PERMISSIVE, False),
    ],
)
def test_the_stricter_of_posture_and_mesh_wins(posture: Posture, mesh: PlaintextMode, strict: bool) -> None:
    intent = decided(posture, services=(declared("web", 80, 8080),), policy=HostPolicy({8080: mesh}))
    assert intent.strict_ports == ((8080,) if strict else ())


def test_outbound_posture_limits_even_a_strict_mesh() -> None:
    policy = HostPolicy({80: PlaintextMode.STRICT})
    assert decided(Posture.OUTBOUND, services=(declared("web", 80),), policy=policy).strict_ports == ()


def test_the_port_the_process_listens_on_counts_not_the_port_of_the_service() -> None:
    assert decided(services=(declared("web", 80, 8080),)).counted_ports == (8080,)


def test_observe_puts_nothing_in_the_kernel_unless_connections_may_still_be_open() -> None:
    assert decided(Posture.OBSERVE, "240.240.0.7:80").mode is Mode.OFF
    assert decided(Posture.OBSERVE, "240.240.0.7:80", draining=True).mode is Mode.DRAIN


def test_sshd_and_the_session_are_spared_with_their_reasons() -> None:
    facts = host_facts(session_ports=frozenset({2200}))
    intent = decided(services=(declared("ssh", 2222), declared("web", 80)), facts=facts)
    assert {(item.port, item.reason) for item in intent.spared} == {
        (22, "sshd listens here"),
        (2222, "sshd listens here"),
        (2200, "a remote session comes in here"),
    }
    assert intent.counted_ports == (80,)


def test_our_own_ports_are_never_treated_as_a_service() -> None:
    intent = decided(Posture.STRICT, services=(declared("odd", 15008), declared("odder", 15001)))
    assert intent.strict_ports == ()
    assert {item.port for item in intent.spared} >= {15008, 15001}


def test_force_ports_takes_a_spared_port_after_all() -> None:
    config = CaptureConfig(force_ports=(PortRange(2222, 2222),))
    intent = decided(services=(declared("ssh", 2222),), config=config)
    assert intent.counted_ports == (2222,)


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("10.0.0.5:80", "own-address"),
        ("[fd00::5]:80", "own-address"),
        ("127.0.0.1:80", "loopback"),
        ("[::1]:80", "loopback"),
        ("169.254.169.254:80", "link-local"),
        ("[fd00:ec2::254]:80", "link-local"),
        ("[fe80::1]:80", "link-local"),
        ("224.0.0.1:80", "multicast"),
        ("[ff02::1]:80", "multicast"),
        ("255.255.255.255:80", "multicast"),
        ("0.0.0.0:80", "unspecified"),
        ("[::ffff:10.0.0.5]:80", "mapped"),
        ("10.0.0.9:15012", "hub"),
        ("10.0.0.9:3306", "hub"),
        ("10.0.0.1:80", "gateway"),
        ("10.0.0.2:53", "resolver"),
        ("10.9.9.9:22", "ssh"),
        ("10.9.9.9:2222", "sshd-port"),
    ],
)
def test_what_a_mesh_may_not_claim_is_refused_by_name(address: str, code: str) -> None:
    intent = decided(Posture.OUTBOUND, address, "10.1.2.3:3306")
    assert intent.claimed == (pair("10.1.2.3:3306"),)
    assert [(claim.address, claim.code) for claim in intent.refused] == [(pair(address), code)]
    assert intent.refused[0].reason


def test_a_virtual_address_may_have_any_port() -> None:
    intent = decided(Posture.OUTBOUND, "240.240.0.7:22")
    assert intent.virtual == (pair("240.240.0.7:22"),)


@pytest.mark.parametrize(
    ("mode", "usable", "decision"),
    [
        (Ipv6Mode.AUTO, True, Ipv6.CAPTURE),
        (Ipv6Mode.AUTO, False, Ipv6.LEAVE),
        (Ipv6Mode.LEAVE, True, Ipv6.LEAVE),
        (Ipv6Mode.REFUSE, True, Ipv6.REFUSE),
        (Ipv6Mode.CAPTURE, True, Ipv6.CAPTURE),
    ],
)
def test_ipv6_is_always_decided(mode: Ipv6Mode, usable: bool, decision: Ipv6) -> None:
    facts = host_facts(ipv6_usable=usable)
    intent = decided(Posture.OUTBOUND, "[2001:2::7]:80", config=CaptureConfig(ipv6=mode), facts=facts)
    assert intent.ipv6 is decision
    assert bool(intent.virtual) is (decision is not Ipv6.LEAVE)


def test_ipv6_capture_without_ipv6_is_an_error_not_a_silent_bypass() -> None:
    with pytest.raises(MeshagentError, match="no IPv6 loopback"):
        decided(config=CaptureConfig(ipv6=Ipv6Mode.CAPTURE), facts=host_facts(ipv6_usable=False))


@pytest.mark.parametrize(
    ("policy", "posture", "opens"),
    [
        (FailurePolicy.AUTO, Posture.OUTBOUND, True),
        (FailurePolicy.AUTO, Posture.PERMISSIVE, True),
        (FailurePolicy.AUTO, Posture.STRICT, False),
        (FailurePolicy.OPEN, Posture.STRICT, True),
        (FailurePolicy.CLOSED, Posture.OUTBOUND, False),
    ],
)
def test_what_happens_without_a_proxy_follows_policy_then_posture(
    policy: FailurePolicy, posture: Posture, opens: bool
) -> None:
    assert decided(posture, config=CaptureConfig(on_proxy_failure=policy)).fail_open is opens


def test_dns_is_captured_only_to_the_nameservers_of_this_host_and_not_to_link_local_ipv6() -> None:
    facts = host_facts(nameservers=tuple(map(ip_address, ("10.0.0.2", "127.0.0.1", "fe80::1", "fd00::2"))))
    captured = decided(capture_dns=True, facts=facts).nameservers
    assert [str(address) for address in captured] == ["10.0.0.2", "127.0.0.1", "fd00::2"]
    assert decided(capture_dns=False, facts=facts).nameservers == ()


def test_units_that_run_are_captured_and_those_that_do_not_are_waited_for() -> None:
    config = CaptureConfig(units=("web.service", "late.service"), exclude=Exclude(units=("batch.slice",)))
    web, batch = Cgroup("web.service", "system.slice/web.service", 2, 77), Cgroup("batch.slice", "batch.slice", 1, 78)
    intent = decided(Posture.OUTBOUND, config=config, facts=host_facts(cgroups=(web, batch)))
    assert (intent.only_units, intent.units, intent.exclude_units) == (True, (web,), (batch,))
    assert intent.waiting == ("capture.units: late.service will be captured when started",)
    assert not decided(Posture.OUTBOUND, facts=host_facts(cgroups=(web,))).units


def test_units_where_nothing_can_match_them_are_an_error_never_ignored() -> None:
    for config in (CaptureConfig(units=("web.service",)), CaptureConfig(exclude=Exclude(units=("web.service",)))):
        with pytest.raises(MeshagentError, match="control groups") as error:
            decided(config=config, facts=host_facts(cgroup_usable=False))
        assert error.value.code == "cgroup-unusable"


@pytest.mark.parametrize(
    "group",
    [
        Cgroup("web.service", 'x"; flush ruleset', 2, 77),
        Cgroup("web.service", "../../etc", 2, 77),
        Cgroup("web.service", "a//b", 2, 77),
        Cgroup("web.service", "system.slice/web.service", 0, 77),
        Cgroup("web.service", "system.slice/web.service", 2, 0),
        Cgroup("web.service", "system.slice/web.service\n", 2, 77),
        Cgroup('web" accept', "system.slice/web.service", 2, 77),
        "web.service",
    ],
)
def test_a_group_with_a_strange_name_never_reaches_a_rule(group: Cgroup) -> None:
    for fields in ({"units": (group,)}, {"exclude_units": (group,)}):
        with pytest.raises(UsageError):
            replace(BASE, **fields)  # type: ignore[arg-type]


def test_without_nftables_it_says_what_is_missing() -> None:
    with pytest.raises(MeshagentError) as error:
        decided(facts=host_facts(nft_usable=False))
    assert error.value.code == "no-capture-backend"
    with pytest.raises(MeshagentError):
        decided(config=CaptureConfig(backend=Backend.IPTABLES))
    assert decided(Posture.OBSERVE, facts=host_facts(nft_usable=False)).mode is Mode.OFF


@pytest.mark.parametrize(
    ("doors", "families", "waits"),
    [
        (None, (4, 6), False),  # a plan before there is a proxy
        ({(Door.PASSTHROUGH, 4), (Door.PASSTHROUGH, 6)}, (4, 6), False),
        ({(Door.PASSTHROUGH, 4)}, (4,), False),
        (set(), (), True),
    ],
)
def test_everything_is_captured_only_where_the_proxy_can_pass_it_on(
    doors: set[OpenDoor] | None, families: tuple[int, ...], waits: bool
) -> None:
    known = None if doors is None else frozenset(doors)
    intent = decided(Posture.OUTBOUND, config=CaptureConfig(outbound=OutboundScope.ALL), doors=known)
    assert intent.all_families == families
    assert bool(intent.waiting) is waits


@pytest.mark.parametrize(
    ("posture", "scope", "shut", "doors", "refused"),
    [
        (Posture.STRICT, OutboundScope.ALL, {4}, {6}, (4,)),
        (Posture.STRICT, OutboundScope.ALL, {4, 6}, set(), (4, 6)),
        (Posture.STRICT, OutboundScope.ALL, {4}, {4, 6}, ()),  # an old word: the proxy passes on by now
        (Posture.STRICT, OutboundScope.ALL, set(), set(), ()),  # nothing is known yet
        (Posture.STRICT, OutboundScope.MESH, {4, 6}, set(), ()),
        (Posture.PERMISSIVE, OutboundScope.ALL, {4, 6}, set(), ()),  # policy open
    ],
)
def test_what_would_be_captured_is_refused_where_policy_is_closed_and_the_proxy_can_have_no_port(
    posture: Posture, scope: OutboundScope, shut: set[int], doors: set[int], refused: tuple[int, ...]
) -> None:
    passing = frozenset((Door.PASSTHROUGH, version) for version in doors)
    intent = decided(posture, config=CaptureConfig(outbound=scope), doors=passing, shut=frozenset(shut))
    assert intent.refused_families == refused
    assert bool(intent.direct) is bool(refused or intent.all_families), "what is direct stays direct"
    assert all(f"over IPv{version} is refused" in " ".join(intent.captured) for version in refused)


@pytest.mark.parametrize(
    ("mode", "tproxy", "decision", "door"),
    [
        (RedirectMode.AUTO, True, RedirectMode.TPROXY, Door.INBOUND_TPROXY),
        (RedirectMode.AUTO, False, RedirectMode.REDIRECT, Door.INBOUND_REDIRECT),
        (RedirectMode.TPROXY, True, RedirectMode.TPROXY, Door.INBOUND_TPROXY),
        (RedirectMode.REDIRECT, True, RedirectMode.REDIRECT, Door.INBOUND_REDIRECT),
    ],
)
def test_what_comes_in_is_handed_over_by_tproxy_where_that_can_be(
    mode: RedirectMode, tproxy: bool, decision: RedirectMode, door: Door
) -> None:
    facts = host_facts(tproxy_usable=tproxy)
    config = CaptureConfig(inbound=InboundScope.ALL, mode=mode)
    assert decided(config=config, facts=facts).inbound_mode is decision
    assert wanted_doors(config, Posture.PERMISSIVE, facts) == {door}
    assert decided(config=config, facts=facts, doors=frozenset({(door, 6)})).inbound_families == (6,)


MUTUAL = HostPolicy({}, {80: RedirectReason.MUTUAL_TLS})
STRICT_MUTUAL = replace(MUTUAL, plaintext={80: PlaintextMode.STRICT})


def at(port: int, *families: int, plain: bool = True, door: Door = Door.PORTS_TPROXY) -> frozenset[PortDoor]:
    return frozenset(PortDoor(door, family, port, plain) for family in families)


@pytest.mark.parametrize(
    ("policy", "ports", "expected"),
    [
        (MUTUAL, None, [((4, 6), True)]),  # a plan before anybody knows
        (STRICT_MUTUAL, None, [((4, 6), False)]),
        (MUTUAL, at(80, 4, 6), [((4, 6), True)]),
        (MUTUAL, at(80, 6), [((6,), True)]),
        (MUTUAL, at(80, 4, plain=False), [((4,), False)]),
        (MUTUAL, frozenset(), []),  # the proxy has no listener yet
        (MUTUAL, at(81, 4), []),
        (MUTUAL, at(80, 4, door=Door.PORTS_REDIRECT), []),  # it isn't handed over that way
        (STRICT_MUTUAL, at(80, 4, plain=False), [((4,), False)]),
        (STRICT_MUTUAL, at(80, 4, 6), []),  # that listener lets plain text pass: the kernel goes on refusing
        (STRICT_MUTUAL, at(80, 4, plain=False) | at(80, 6), [((4,), False)]),
        (HostPolicy(), at(80, 4), []),  # nobody wants it
    ],
)
def test_a_port_is_redirected_once_the_proxy_does_there_what_the_mesh_wants(
    policy: HostPolicy, ports: frozenset[PortDoor] | None, expected: list[tuple[tuple[int, ...], bool]]
) -> None:
    intent = decided(services=(declared("web", 80),), policy=policy, ports=ports)
    assert [(each.families, each.plain) for each in intent.redirected] == expected
    assert (80 in intent.strict_ports) is (policy is STRICT_MUTUAL), "the kernel refuses what the proxy doesn't get"
    assert bool(intent.waiting) is (bool(policy.redirect) and not expected)


def test_what_is_spared_or_not_declared_is_never_redirected_and_other_postures_redirect_nothing() -> None:
    every = HostPolicy({}, dict.fromkeys((22, 80, 81, 8443, 15008), RedirectReason.MUTUAL_TLS))
    services = tuple(declared(f"s{port}", port) for port in (22, 80, 8443, 15008))
    config = CaptureConfig(exclude=Exclude(ports=(PortRange(8000, 9000),)))
    intent = decided(services=services, policy=every, config=config)
    assert [each.port for each in intent.redirected] == [80] and not intent.waiting
    assert "peers speak mutual TLS" in " ".join(intent.captured)
    for posture in (Posture.OBSERVE, Posture.OUTBOUND):
        assert decided(posture, services=services, policy=every).redirected == ()
        assert wanted_doors(CaptureConfig(), posture, host_facts(), every) == frozenset()


def test_the_mesh_cant_make_a_host_fail_that_has_no_tproxy_or_no_nftables() -> None:
    services, config = (declared("web", 80),), CaptureConfig(mode=RedirectMode.TPROXY)
    facts = host_facts(tproxy_usable=False)
    assert decided(services=services, policy=MUTUAL, config=config, facts=facts).inbound_mode is RedirectMode.REDIRECT
    assert wanted_doors(config, Posture.STRICT, facts, MUTUAL) == {Door.PORTS_REDIRECT}
    assert wanted_doors(config, Posture.STRICT, host_facts(), MUTUAL) == {Door.PORTS_TPROXY}
    legacy = decided(services=services, policy=MUTUAL, facts=host_facts(nft_usable=False, iptables_usable=True))
    assert [each.port for each in legacy.redirected] == [80] and legacy.inbound_mode is RedirectMode.REDIRECT


def test_tproxy_on_a_kernel_without_it_is_an_error_that_says_what_to_set() -> None:
    config = CaptureConfig(inbound=InboundScope.ALL, mode=RedirectMode.TPROXY)
    with pytest.raises(MeshagentError) as error:
        decided(config=config, facts=host_facts(tproxy_usable=False))
    assert error.value.code == "tproxy-unusable"
    assert "redirect" in error.value.hint


@pytest.mark.parametrize("posture", [Posture.OBSERVE, Posture.OUTBOUND])
def test_a_posture_that_lets_nobody_in_redirects_nothing_that_comes_in(posture: Posture) -> None:
    config = CaptureConfig(inbound=InboundScope.ALL, bridges=("docker0",))
    assert decided(posture, config=config).inbound_families == ()
    assert wanted_doors(config, posture, host_facts()) == ({Door.BRIDGES} if posture is Posture.OUTBOUND else set())


def test_the_captured_are_told_in_sentences() -> None:
    intent = decided(Posture.PERMISSIVE, "240.240.0.7:80", "10.1.2.3:3306", services=(declared("w", 80),))
    assert intent.captured == (
        "new connections to 1 virtual and 1 claimed addresses",
        "plain-text callers counted on ports 80",
    )


# --- hostile values

HOSTILE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "10.0.0.1; flush ruleset",
            "80 } ; flush ruleset ; table inet x { chain y { ",
            'eth0" accept comment "',
            'eth0\ninclude "/etc/passwd"',
            "٣٣٠٦",
            "$x",
            "1" * 400,
        ]
    ),
    st.integers(min_value=65536),
    st.integers(max_value=0),
    st.booleans(),
    st.none(),
    st.floats(),
)
BASE = Intent(Mode.ACTIVE, PROXY_UID)


@given(HOSTILE)
def test_no_field_takes_anything_but_numbers_and_addresses(value: object) -> None:
    ok = pair("240.240.0.7:80")
    bad_fields: list[dict[str, object]] = [
        {"counted_ports": (value,)},
        {"strict_ports": (80, value)},
        {"virtual": (MeshAddress(ok.ip, value),)},  # type: ignore[arg-type]
        {"claimed": (MeshAddress(value, 80),)},  # type: ignore[arg-type]
        {"nameservers": (value,)},
        {"exclude": Exclude(ports=(PortRange(1, value),))},  # type: ignore[arg-type]
        {"exclude": Exclude(cidrs=(value,))},  # type: ignore[arg-type]
        {"direct": (value,)},
        {"inbound_direct_ports": (PortRange(value, 80),)},  # type: ignore[arg-type]
        {"inbound_families": (value,)},
        {"bridged_families": (value,)},
        {"direct_ports": (PortRange(1, value),)},  # type: ignore[arg-type]
        {"all_families": (value,)},
        {"refused_families": (value,)},
    ]
    for fields in bad_fields:
        with pytest.raises(UsageError):
            replace(BASE, **fields)  # type: ignore[arg-type]


@given(st.one_of(st.text(), st.booleans(), st.integers(max_value=-1), st.integers(min_value=2**32 - 1)))
def test_no_uid_but_a_real_one(value: object) -> None:
    for fields in ({"proxy_uid": value}, {"exclude": Exclude(uids=(value,))}, {"exclude": Exclude(gids=(value,))}):  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            replace(BASE, **fields)  # type: ignore[arg-type]


def test_the_proxy_may_not_be_root() -> None:
    with pytest.raises(UsageError, match="root"):
        replace(BASE, proxy_uid=0)


@given(st.text(max_size=20))
def test_a_bridge_name_is_a_name_or_refused(name: str) -> None:
    try:
        intent = replace(BASE, bridges=(name,), bridged_families=(4,))
    except UsageError:
        return
    assert f'iifname {{ "{name}" }}' in nft.render(intent).table
    assert not set(name) & set('"{};\n $\\#')


@given(st.text(max_size=20))
def test_an_interface_name_is_a_name_or_refused(name: str) -> None:
    try:
        intent = replace(BASE, exclude=Exclude(interfaces=(name,)))
    except UsageError:
        return
    assert f'oifname {{ "{name}" }}' in nft.render(intent).table
    assert not set(name) & set('"{};\n $\\#')


def test_the_zone_id_of_an_ipv6_address_is_free_text_and_refused() -> None:
    hostile = IPv6Address("fe80::1%x; flush ruleset")
    with pytest.raises(UsageError):
        replace(BASE, claimed=(MeshAddress(hostile, 80),))
    with pytest.raises(UsageError):
        replace(BASE, nameservers=(hostile,))


ADDRESSES = st.one_of(
    st.ip_addresses(), st.ip_addresses(network="240.240.0.0/16"), st.ip_addresses(network="2001:2::/48")
)


@given(
    st.frozensets(st.builds(MeshAddress, ADDRESSES, st.integers(1, 65535)), max_size=12),
    st.sampled_from(Posture),
    st.sampled_from(OutboundScope),
)
def test_no_plan_captures_the_host_itself_loopback_the_hub_or_sshd(
    mesh: frozenset[MeshAddress], posture: Posture, scope: OutboundScope
) -> None:
    facts = host_facts()
    dangerous = frozenset(
        MeshAddress(ip, port)
        for ip in (*facts.own_addresses, *facts.hub_addresses, *facts.gateways, ip_address("127.0.0.1"))
        for port in (22, 80)
    )
    config = CaptureConfig(outbound=scope)
    intent = decide(Wishes(posture, mesh=mesh | dangerous, services=(declared("ssh", 22),), config=config), facts)

    taken = {claim.ip for claim in intent.claimed}
    assert not taken & (facts.own_addresses | facts.hub_addresses | facts.gateways | set(facts.nameservers))
    assert not any(
        claim.ip.is_loopback or claim.ip.is_multicast or claim.port in (22, 2222) for claim in intent.claimed
    )
    assert not {22, 2222} & {*intent.counted_ports, *intent.strict_ports}
    if intent.all_families:
        never = {ip_address("127.0.0.1"), ip_address("::1"), *facts.hub_addresses, *facts.gateways, *facts.nameservers}
        assert all(any(address in network for network in intent.direct) for address in never)
        assert all(any(port in ports for ports in intent.direct_ports) for port in (22, 2222))
    table = nft.render(intent).table
    for chain in re.findall(r"chain (?:mesh|everything) \{\n(.*?)\n\t\}", table, re.DOTALL):
        rules = [line.strip() for line in chain.splitlines()]
        assert [rule.split(" counter ")[0] for rule in rules[:4]] == [
            "tcp flags & (fin|syn|rst|ack) != syn",
            "meta mark { 0x6d610001, 0x6d610002, 0x6d610003 }",
            f"meta skuid {PROXY_UID}",
            "fib daddr type local",
        ], "the proxy and own addresses leave before anything can capture them"


def test_overlapping_networks_and_ports_are_merged_for_the_kernel() -> None:
    exclude = Exclude(
        ports=(PortRange(1, 5), PortRange(4, 9), PortRange(11, 12)),
        cidrs=tuple(map(ip_network, ("10.3.0.0/16", "10.3.4.0/24", "fd00::/8"))),
    )
    table = nft.render(replace(BASE, exclude=exclude)).table
    assert "tcp dport { 1-9, 11-12 }" in table
    assert "ip daddr { 10.3.0.0/16 }" in table
