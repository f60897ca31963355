"""Real firewalls on real hosts: what is judged is what the wire does, and the line that is given lets peers in."""

import shlex
from collections.abc import Iterator

import pytest

from meshagent.agent.judge.firewalls import Firewall, judge_firewalls
from meshagent.lab import Host, Lab
from tests.lab.firewalls import Firewalld

pytestmark = pytest.mark.root

HBONE = 15008


@pytest.fixture(scope="module")
def opened() -> Iterator[Lab]:
    with Lab(families=(4,)) as lab:
        lab.host("peer")
        yield lab


def judged(host: Host) -> tuple[Firewall, ...]:
    """What is read and judged there, in the host's own network and files."""
    code = (
        "from meshagent.machine import firewalls; from meshagent.agent.judge.firewalls import *;"
        "f = firewalls.read(); print(repr(judge_firewalls(f.nft, f.saved, f.managers, f.zone, f.flushes)))"
    )
    found: tuple[Firewall, ...] = eval(host.python(code), {"Firewall": Firewall})
    return found


def gets_in(host: Host, patience: float = 5.0) -> bool:
    """Whether the peer reaches port 15008 of the host; ``patience`` in seconds: the machine may be busy."""
    with host.listen(HBONE):
        try:
            host.lab.hosts["peer"].connect(host.address, HBONE, timeout=patience).close()
        except OSError:
            return False
        return True


def agrees(host: Host, name: str, verdict: str) -> Firewall:
    """The judgement of ``name``; the wire must say the same."""
    found = {each.name: each for each in judged(host)}
    assert list(found) == [name]
    assert found[name].verdict == verdict
    assert gets_in(host, 1 if verdict == "blocks" else 5) == (verdict != "blocks")
    return found[name]


def opens(host: Host, line: str) -> None:
    host.run(["sh", "-ec", line], timeout=60)
    assert gets_in(host)


def test_a_host_without_a_firewall_has_none(opened: Lab) -> None:
    host = opened.host("bare")
    assert judged(host) == ()
    assert gets_in(host)
    assert host.run(["cat", "/proc/net/ip_tables_names"], check=False).stdout == ""  # looking has loaded nothing


def test_ufw_refuses_until_the_line_of_the_plan_is_typed(opened: Lab) -> None:
    host = opened.host("ufw")
    host.run(["ufw", "allow", "22/tcp"], timeout=60)
    host.run(["ufw", "--force", "enable"], timeout=60)
    line = agrees(host, "ufw", "blocks").allow
    assert line == "ufw allow 15008/tcp"
    opens(host, line)
    assert agrees(host, "ufw", "open").allow == ""
    host.run(["ufw", "--force", "delete", "allow", "15008/tcp"], timeout=60)
    host.run(["ufw", "allow", "from", host.lab.hosts["peer"].address, "to", "any", "port", "15008"], timeout=60)
    assert "from some places only" in agrees(host, "ufw", "depends").text


@pytest.mark.parametrize("backend", ["nftables", pytest.param("iptables", marks=pytest.mark.long)])
def test_firewalld_refuses_until_the_line_of_the_plan_is_typed(opened: Lab, backend: str) -> None:
    host = opened.host(f"fwd-{backend}")
    manager = Firewalld(host, backend)
    manager.start()
    line = agrees(host, "firewalld", "blocks").allow
    assert "--zone=public" in line
    opens(host, line)
    assert agrees(host, "firewalld", "open").allow == ""
    manager.stop()


RULES = """
table inet fw {
 chain in {
  type filter hook input priority 0; policy drop
  ct state established accept
  %s
 }
}
"""


@pytest.mark.parametrize(
    ("rule", "verdict"), [("", "blocks"), ("tcp dport 15000-15010 accept", "open"), ("tcp dport 22 accept", "blocks")]
)
def test_a_table_of_somebody_is_judged_and_the_line_works(opened: Lab, rule: str, verdict: str) -> None:
    host = opened.host(f"nft-{verdict}-{len(rule)}")
    host.run(["nft", "-f", "-"], input=RULES % rule)
    found = agrees(host, "nft table inet fw", verdict)
    if verdict == "blocks":
        opens(host, found.allow.partition(" (")[0].replace("CHAIN", "in"))


@pytest.mark.parametrize("command", ["iptables-legacy", "iptables-nft"])
def test_rules_of_both_iptables_are_judged_and_the_line_works(opened: Lab, command: str) -> None:
    host = opened.host(command)
    for words in ("-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT", "-A INPUT -p tcp --dport 22 -j ACCEPT"):
        host.run([command, *shlex.split(words)])
    assert gets_in(host)
    host.run([command, "-P", "INPUT", "DROP"])
    opens(host, agrees(host, command, "blocks").allow)
    agrees(host, command, "open")


def test_nftables_service_is_named_with_what_its_flush_means(opened: Lab) -> None:
    host = opened.host("service")
    wants = host.path("/etc/systemd/system/sysinit.target.wants")
    wants.mkdir(parents=True, exist_ok=True)
    (wants / "nftables.service").symlink_to("/lib/systemd/system/nftables.service")
    host.path("/etc/nftables.conf").write_text("#!/usr/sbin/nft -f\nflush ruleset\n" + RULES % "tcp dport 22 accept")
    host.run(["nft", "-f", "/etc/nftables.conf"])
    by_name = {each.name: each for each in judged(host)}
    assert by_name["nftables.service"].verdict == "blocks"
    assert "ours stay or come back" in by_name["nftables.service"].text
    assert "/etc/nftables.conf" in by_name["nftables.service"].allow


def test_our_own_tables_are_nobodys_firewall() -> None:
    nft = '{"nftables": [{"chain": {"family": "inet", "table": "meshagent", "name": "x", "type": "filter", '
    nft += '"hook": "input", "policy": "drop"}}]}'
    assert judge_firewalls(nft, {}, frozenset(), "public", False) == ()
