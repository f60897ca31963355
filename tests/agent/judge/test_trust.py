"""Access rules by address are found in every program's own words, and told whether they keep their meaning."""

import pytest

from meshagent.agent.judge.risks import Risk
from meshagent.agent.judge.trust import Trusting, TrustRule, explain, read_rules, trust_risk

HBA = """
# TYPE  DATABASE  USER  ADDRESS  METHOD
local   all       all                      peer
host    all       all   127.0.0.1/32       scram-sha-256
hostssl app       web   10.0.0.0/8         scram-sha-256  # the web servers
host    all       all   0.0.0.0/0          scram-sha-256
host    all       all   10.9.9.9/32        reject
host    repl      rep   192.0.2.1 255.255.255.255 md5
host    all       all   samehost           trust
"""


@pytest.mark.parametrize(
    ("program", "text", "expected"),
    [
        ("postgresql", HBA, [(4, True), (5, False), (8, False), (9, False)]),
        ("postfix", "myhostname = x\nmynetworks = 127.0.0.0/8 [::1]/128\n", [(2, True)]),
        ("postfix", "mynetworks = 127.0.0.0/8,\n   192.0.2.0/24\nrelayhost =\n", [(1, False)]),
        ("postfix", "mynetworks_style = subnet\n", [(1, False)]),
        ("postfix", "myhostname = x\n", [(0, False)]),
        ("redis", "bind 0.0.0.0\nprotected-mode yes\n", [(2, True)]),
        ("redis", "bind 0.0.0.0\n", [(0, True)]),
        ("redis", "protected-mode no\n", []),
        ("redis", "protected-mode yes\nrequirepass secret\n", []),
        ("apache", "<Location />\n  Require ip 10.1 192.0.2.0/24\n</Location>\n", [(2, False)]),
        ("apache", "Require local\n", [(1, True)]),
        ("apache", "Require all granted\n", []),
        ("apache", "Allow from 192.0.2.7\nDeny from all\n", [(1, False)]),
        ("nginx", "location / {\n  allow 10.0.0.0/8;\n  deny all;\n}\n", [(2, False)]),
        ("nginx", "# allow 10.0.0.0/8;\nallow 127.0.0.1; deny all;\n", [(2, True)]),
    ],
)
def test_rules_by_address_are_found_with_their_lines(program: str, text: str, expected: list[tuple[int, bool]]) -> None:
    found = read_rules(program, [("/etc/x", text)])
    assert [(rule.line, rule.loopback) for rule in found] == expected
    assert all(rule.file == "/etc/x" and rule.rule for rule in found)


@pytest.mark.parametrize("program", ["postgresql", "postfix", "redis", "apache", "nginx"])
@pytest.mark.parametrize(
    "text", ["\0" * 50, "host\nmynetworks\nRequire\nallow;\n\\\n", "é" * 1000, "host a b [ c\n" * 2000]
)
def test_nonsense_breaks_nothing(program: str, text: str) -> None:
    read_rules(program, [("/etc/x", text)])


def trusting(*, keeps: bool, loopback: bool) -> Trusting:
    return Trusting("postgresql", 5432, keeps, (TrustRule("pg_hba.conf", 5, "host all all 10.0.0.0/8 md5", loopback),))


@pytest.mark.parametrize(
    ("keeps", "loopback", "words"),
    [(True, False, "keeps"), (True, True, "keeps"), (False, True, "never from loopback"), (False, False, "loses")],
)
def test_each_rule_is_told_what_becomes_of_it(keeps: bool, loopback: bool, words: str) -> None:
    found = trusting(keeps=keeps, loopback=loopback)
    assert words in explain(found, found.rules[0])


def risks(*, keeps: bool, loopback: bool) -> list[Risk]:
    return list(trust_risk([("pg", trusting(keeps=keeps, loopback=loopback))]))


def test_only_a_rule_that_loses_its_meaning_is_a_risk() -> None:
    assert risks(keeps=True, loopback=False) == risks(keeps=False, loopback=True) == []
    (risk,) = risks(keeps=False, loopback=False)
    assert risk.name == "address-trust"
    assert "pg_hba.conf line 5" in risk.text and "5432" in risk.text and "loopback" in risk.mend


def test_grants_of_mariadb_are_told_with_the_query_that_shows_them_and_refuse_nobody_unseen() -> None:
    for keeps, word in ((True, "keeps its meaning"), (False, "loses its meaning")):
        found = Trusting("mariadb", 3306, keeps, read_rules("mariadb", []))
        (rule,) = found.rules
        assert "SELECT user, host FROM mysql.user" in rule.rule
        assert word in explain(found, rule)
        assert list(trust_risk([("db", found)])) == []


def test_a_secret_beside_a_rule_is_not_repeated() -> None:
    found = read_rules("redis", [("/etc/redis.conf", "requirepass hunter2\nprotected-mode yes\n")])
    assert "hunter2" not in repr(found)
