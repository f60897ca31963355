"""nft's own listing, rule by rule, for a new TCP connection to port 15008: the text goes through the real nft."""

import subprocess

import pytest

from meshagent.agent.judge.nft_rules import parse
from meshagent.agent.judge.packets import Fate, fates

ACCEPTED, REFUSED = Fate.ACCEPTED, Fate.REFUSED
BOTH = {ACCEPTED, REFUSED}


def listed(text: str) -> str:
    """The kernel's listing of a ruleset, in a network namespace that ends with the command."""
    script = "nft -f - && nft --terse --json list ruleset"
    argv = ["unshare", "--net", "sh", "-ec", script]
    return subprocess.run(argv, input=text, capture_output=True, text=True, check=True).stdout


def fate(*rules: str, policy: str = "drop", family: str = "inet") -> set[Fate]:
    chain = f"chain in {{ type filter hook input priority 0; policy {policy};\n" + "\n".join(rules) + "\n}"
    more = "set ports { type inet_service; elements = { 22, 15008 } }\n chain mine { tcp dport 15008 accept; }\n"
    (table,) = parse(listed(f"table {family} fw {{\n {more} {chain}\n}}\n"), 15008)
    assert (table.family, table.name) == (family, "fw")
    return set(fates(table.chains, "in", table.bases["in"]))


@pytest.mark.root
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("tcp dport 15008 accept", {ACCEPTED}),
        ("tcp dport 22 accept", {REFUSED}),
        ("tcp dport { 22, 15008 } accept", {ACCEPTED}),
        ("tcp dport { 22, 15000-15010 } accept", {ACCEPTED}),
        ("tcp dport 15000-15010 accept", {ACCEPTED}),
        ("tcp dport != 22 accept", {ACCEPTED}),
        ("tcp dport @ports accept", BOTH),
        ("udp dport 15008 accept", {REFUSED}),
        ("meta l4proto tcp accept", {ACCEPTED}),
        ("meta l4proto { icmp, ipv6-icmp } accept", {REFUSED}),
        ("icmp type echo-request accept", {REFUSED}),
        ('iif "lo" accept', {REFUSED}),
        ('iifname "lo" accept', {REFUSED}),
        ('iifname != "lo" accept', {ACCEPTED}),
        ('iifname "eth0" accept', BOTH),
        ("ip saddr 10.0.0.0/8 tcp dport 15008 accept", BOTH),
        ("ct state established,related accept", {REFUSED}),
        ("ct state { established, related } accept", {REFUSED}),
        ("ct state new accept", {ACCEPTED}),
        ("ct state vmap { established : accept, new : jump mine }", {ACCEPTED}),
        ("ct state vmap { established : accept, invalid : drop }", {REFUSED}),
        ("tcp dport vmap { 22 : accept, 15008 : goto mine }", {ACCEPTED}),
        ("jump mine", {ACCEPTED}),
        ("tcp dport 15008 limit rate 10/second accept", BOTH),
        ('counter tcp dport 15008 log prefix "x" accept', {ACCEPTED}),
        ("fib daddr type local accept", {ACCEPTED}),
        ("ct status dnat accept", {REFUSED}),
        ("meta nfproto ipv6 fib saddr . mark . iif oif missing drop", {REFUSED}),
    ],
)
def test_one_rule_before_a_policy_that_drops(rule: str, expected: set[Fate]) -> None:
    assert fate(rule) == expected


@pytest.mark.root
def test_a_check_of_the_way_back_refuses_nobody_who_has_one() -> None:
    assert fate("fib saddr . mark . iif oif missing drop", policy="accept") == {ACCEPTED}


@pytest.mark.root
def test_a_last_rule_that_rejects_is_a_policy_too() -> None:
    assert fate("tcp dport 22 accept", "reject with icmpx admin-prohibited", policy="accept") == {REFUSED}


@pytest.mark.root
def test_tables_that_filter_nothing_on_the_way_in_are_no_firewall() -> None:
    nat = (
        "table ip nat {\n chain x {\n type nat hook prerouting priority -100\n tcp dport 80 redirect to :8080\n }\n}\n"
    )
    assert parse(listed(nat), 15008) == ()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nftables": 1}', '{"nftables": [{"rule": {}}]}', "null"])
def test_a_listing_that_cannot_be_read_is_no_firewall(text: str) -> None:
    assert parse(text, 15008) == ()
