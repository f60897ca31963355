"""iptables-save, rule by rule, for a new TCP connection to port 15008."""

import pytest

from meshagent.agent.judge.packets import Fate, fates
from meshagent.agent.judge.saved_rules import parse

ACCEPTED, REFUSED = Fate.ACCEPTED, Fate.REFUSED
BOTH = {ACCEPTED, REFUSED}


def fate(*lines: str, policy: str = "DROP") -> set[Fate]:
    text = "\n".join(["*filter", f":INPUT {policy} [1:60]", ":mine - [0:0]", *lines, "COMMIT"])
    chains, policies = parse(text, 15008)
    return set(fates(chains, "INPUT", policies["INPUT"]))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-A INPUT -p tcp -m tcp --dport 15008 -j ACCEPT", {ACCEPTED}),
        ("-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT", {REFUSED}),
        ("-A INPUT -p tcp -m tcp --dport 15000:15010 -j ACCEPT", {ACCEPTED}),
        ("-A INPUT -p tcp -m multiport --dports 22,80,15008 -j ACCEPT", {ACCEPTED}),
        ("-A INPUT -p tcp -m multiport --dports 22,80,443 -j ACCEPT", {REFUSED}),
        ("-A INPUT -p udp -m udp --dport 15008 -j ACCEPT", {REFUSED}),
        ("-A INPUT -p tcp ! --dport 22 -j ACCEPT", {ACCEPTED}),
        ("-A INPUT -i lo -j ACCEPT", {REFUSED}),
        ("-A INPUT ! -i lo -j ACCEPT", {ACCEPTED}),
        ("-A INPUT -i eth0 -j ACCEPT", BOTH),
        ("-A INPUT -s 10.0.0.0/8 -p tcp --dport 15008 -j ACCEPT", BOTH),
        ("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", {REFUSED}),
        ("-A INPUT -m state --state NEW -p tcp --dport 15008 -j ACCEPT", {ACCEPTED}),
        ('-A INPUT -m comment --comment "mesh -j DROP" -p tcp --dport 15008 -j ACCEPT', {ACCEPTED}),
        ("-A INPUT -m set --match-set friends src -j ACCEPT", BOTH),
        ('-A INPUT -j LOG --log-prefix "[DROP -j ACCEPT] "', {REFUSED}),
        ("-A INPUT -g mine", {REFUSED}),
        ("-A INPUT -p tcp --dport 15008 'unbalanced", {REFUSED}),
        ("-A INPUT -p icmp --icmp-type 8 -j ACCEPT", {REFUSED}),
    ],
)
def test_one_rule_before_a_policy_that_drops(line: str, expected: set[Fate]) -> None:
    assert fate(line) == expected


def test_a_jump_comes_back_and_the_first_verdict_counts() -> None:
    assert fate("-A INPUT -j mine", "-A mine -p tcp --dport 22 -j ACCEPT", "-A mine -j REJECT") == {REFUSED}
    assert fate("-A INPUT -j mine", "-A mine -j RETURN", "-A mine -j DROP", policy="ACCEPT") == {ACCEPTED}


def test_nothing_and_nonsense_is_no_rule() -> None:
    assert parse("", 15008) == ({}, {})
    assert parse("-A \n:\n*x\n\0", 15008)[1] == {}
