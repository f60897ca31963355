"""The legacy backend as a network engineer reads it: goldens, and what the kernel makes of each.

``MESHAGENT_UPDATE_GOLDENS=1`` writes tests/golden/iptables anew; read the difference before committing it.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.agent.capture import iptables
from meshagent.guard import legacy_text
from meshagent.lab import Lab
from meshagent.lab.host import Host
from meshagent.model.address import MeshAddress, parse_ip
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided
from tests.agent.capture.test_nft import CASES as BOTH
from tests.agent.capture.test_nft import MESH, MORE, PORTS, SERVICES

#: Whatever this backend can do.
CASES = BOTH | {name: intent for name, intent in (MORE | PORTS).items() if "tproxy" not in name}
GOLDEN = Path(__file__).parents[2] / "golden/iptables"
PROGRAMS = {4: "iptables-legacy", 6: "ip6tables-legacy"}


def family(text: str, version: int) -> str:
    """The part of a text that is for one family."""
    return "".join(part for part in re.split(r"^(?=# IPv)", text, flags=re.M) if part.startswith(f"# IPv{version}"))


def rules(text: str) -> list[str]:
    return sorted(line for line in text.splitlines() if line.startswith("-A "))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Lab() as lab:
        yield lab.host("a")


@pytest.mark.parametrize("name", CASES)
def test_the_rules_are_those_that_were_approved(name: str) -> None:
    path, text = GOLDEN / f"{name}.rules", iptables.render(CASES[name]).rules
    if os.environ.get("MESHAGENT_UPDATE_GOLDENS"):
        path.write_text(text)
    assert text == path.read_text()


def test_every_golden_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.rules")} == {*CASES}


@pytest.mark.root
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_holds_word_for_word_what_was_written(host: Host, name: str, version: int) -> None:
    """So what the kernel holds can be compared with what was wanted, and counters find their rule again."""
    ruleset, program = iptables.render(CASES[name]), PROGRAMS[version]
    wanted = family(ruleset.anchor, version) + family(ruleset.rules, version)
    try:
        host.run([f"{program}-restore", "--noflush", "-w", "5"], input=wanted)
        assert rules(host.run([f"{program}-save"]).stdout) == rules(wanted)
        for gate in ruleset.gates.values():
            for flip in (gate.bypass, gate.recapture):
                host.run([f"{program}-restore", "--noflush", "-w", "5"], input=family(flip, version))
        assert rules(host.run([f"{program}-save"]).stdout) == rules(wanted), "closed gates are as they were"
    finally:
        host.run([f"{program}-restore", "-w", "5"], input=_empty())


def _empty() -> str:
    chains = {
        "raw": ("PREROUTING", "OUTPUT"),
        "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
        "filter": ("INPUT", "FORWARD", "OUTPUT"),
        "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    }
    return "".join(
        f"*{table}\n" + "".join(f":{chain} ACCEPT [0:0]\n" for chain in builtin) + "COMMIT\n"
        for table, builtin in chains.items()
    )


@pytest.mark.parametrize("name", CASES)
def test_every_rule_has_its_reason(name: str) -> None:
    for rule in rules(iptables.render(CASES[name]).rules):
        assert re.search(r' --comment "[^"]{8,255}"', rule), rule


@pytest.mark.parametrize("name", CASES)
def test_only_first_packets_are_redirected_or_refused(name: str) -> None:
    """Only virtual addresses, where no open connection can be, are refused whatever the packet."""
    text = iptables.render(CASES[name]).rules
    for rule in rules(text):
        if re.search(r"-j MESHAGENT_(OWN_PORTS|OWN_OUTSIDE|INBOUND|REFUSE_IPV6)$", rule) and "-p tcp" in rule:
            assert "--tcp-flags FIN,SYN,RST,ACK SYN" in rule, rule
    for chain in ("OUTBOUND", "NAMES", "BRIDGED_MESH", "ARRIVING"):
        first = re.search(rf"^-A MESHAGENT_{chain} (?!-i lo )(.*)$", text, re.M)
        assert first is None or "! --tcp-flags FIN,SYN,RST,ACK SYN" in first[1]


def test_observe_means_no_rule_at_all() -> None:
    ruleset = iptables.render(decided(Posture.OBSERVE, *MESH))
    assert (ruleset.rules, ruleset.anchor, dict(ruleset.gates)) == ("", "", {})


def test_only_with_policy_open_there_is_a_way_around_the_proxy() -> None:
    assert "proxy" in iptables.render(decided(Posture.PERMISSIVE)).gates
    assert set(iptables.render(decided(Posture.STRICT, capture_dns=True)).gates) == {"hung", "resolver"}


def test_equal_intents_render_to_equal_text_in_whatever_order_things_came() -> None:
    first = decided(Posture.PERMISSIVE, *MESH, services=SERVICES)
    second = decided(Posture.PERMISSIVE, *reversed(MESH), services=tuple(reversed(SERVICES)))
    assert iptables.render(first) == iptables.render(second)


def test_thousands_of_addresses_are_looked_up_by_network() -> None:
    """A new connection passes one rule for each network and those of its own, not one for each address."""
    mesh = [f"240.240.{number // 250}.{number % 250}:80" for number in range(5000)]
    text = family(iptables.render(decided(Posture.OUTBOUND, *mesh)).rules, 4)
    lengths: dict[str, int] = {}
    for rule in rules(text):
        chain = rule.split()[1]
        lengths[chain] = lengths.get(chain, 0) + 1
    assert lengths["MESHAGENT_VIRTUAL"] == 20
    assert max(lengths.values()) == 250
    address = MeshAddress(parse_ip("240.240.19.249") or pytest.fail("no address"), 80)
    assert f"-d {address.ip}/32 -p tcp -m tcp --dport 80" in text


def test_what_this_backend_cannot_do_is_said() -> None:
    said = " ".join(iptables.lost(decided(Posture.PERMISSIVE, services=SERVICES)))
    assert "the rules stay if the guard is killed" in said
    assert "at most 100 plain-text callers" in said


def test_one_address_more_among_thousands_writes_the_chain_of_its_network_and_nothing_else() -> None:
    """And needs no look at the others: 5,000 addresses in 20 networks, one of them changes."""
    many = [f"10.0.{number % 20}.{number // 20 + 1}:6379" for number in range(5000)]
    before, after = (
        legacy_text.merged(iptables.render(decided(Posture.PERMISSIVE, *pairs)).rules)[4]
        for pairs in (many, [*many, "10.0.3.253:6379"])
    )
    lines = legacy_text.transition(before, after).splitlines()
    assert [line for line in lines if "10.0.3.253/32" in line]
    assert len(lines) <= 256 + len(("*nat", ":chain", "COMMIT"))
