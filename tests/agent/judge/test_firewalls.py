"""Who is in charge, what it does to mesh peers, and the line that lets them in."""

from dataclasses import replace

import pytest

from meshagent.agent.judge.firewalls import Firewall, judge_firewalls, needed_ports
from meshagent.config.settings import RedirectMode
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided

REFUSES = ":INPUT DROP [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\n"
LETS_IN = ":INPUT DROP [0:0]\n-A INPUT -p tcp --dport 15008 -j ACCEPT\n"


def judge(*managers: str, zone: str = "public", flushes: bool = False, **saved: str) -> tuple[Firewall, ...]:
    commands = {name.replace("_", "-"): text for name, text in saved.items()}
    return judge_firewalls(None, commands, frozenset(managers), zone, flushes)


def test_a_manager_answers_for_its_rules_and_gives_its_own_line() -> None:
    (ufw,) = judge("ufw", iptables_nft=REFUSES, ip6tables_nft=REFUSES)
    assert (ufw.name, ufw.verdict, ufw.allow) == ("ufw", "blocks", "ufw allow 15008/tcp")
    (firewalld,) = judge("firewalld", zone="dmz", iptables_nft=REFUSES)
    assert "--zone=dmz --add-port=15008/tcp" in firewalld.allow


def test_rules_without_a_manager_are_named_by_the_command_that_made_them() -> None:
    (found,) = judge(iptables_legacy=REFUSES)
    assert (found.name, found.verdict) == ("iptables-legacy", "blocks")
    assert found.allow == "iptables-legacy -I INPUT -p tcp --dport 15008 -j ACCEPT"


def test_open_needs_no_line() -> None:
    assert [each.allow for each in judge("ufw", iptables_nft=LETS_IN)] == [""]


@pytest.mark.parametrize(
    ("four", "six", "verdict"),
    [(REFUSES, REFUSES, "blocks"), (LETS_IN, REFUSES, "depends"), (LETS_IN, LETS_IN, "open")],
)
def test_where_ip_versions_differ_it_depends_on_the_caller(four: str, six: str, verdict: str) -> None:
    (found,) = judge("ufw", iptables_nft=four, ip6tables_nft=six)
    assert found.verdict == verdict


def test_a_manager_without_rules_lets_peers_in_now_and_docker_concerns_nobody() -> None:
    docker, ufw = judge("ufw", "docker")
    assert "forwarded" in docker.text and docker.verdict == ufw.verdict == "open"
    assert "no rules in the kernel now" in ufw.text


def test_other_ways_in_are_judged_by_the_ports_that_input_sees() -> None:
    bridges = replace(decided(Posture.PERMISSIVE), bridges=("docker0",), bridged_families=(4,))
    redirecting = replace(bridges, inbound_families=(4,), inbound_mode=RedirectMode.REDIRECT)
    assert needed_ports(decided(Posture.PERMISSIVE)) == (15008,)
    assert needed_ports(bridges) == (15008, 15002)
    assert needed_ports(redirecting) == (15008, 15006, 15002)
    assert needed_ports(replace(redirecting, inbound_mode=RedirectMode.TPROXY)) == (15008, 15002)
    (ufw,) = judge_firewalls(None, {"iptables-nft": LETS_IN}, frozenset({"ufw"}), "public", False, 15002)
    assert (ufw.port, ufw.verdict, ufw.allow) == (15002, "blocks", "ufw allow 15002/tcp")
    assert "containers can't reach the mesh" in ufw.text


def test_the_service_says_what_its_flush_means() -> None:
    (service,) = judge("nftables.service", flushes=True)
    assert "removes everybody's rules" in service.text
