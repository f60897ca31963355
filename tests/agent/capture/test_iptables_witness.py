"""What legacy tables hold, told by somebody else: python-iptables asks the kernel through libiptc, not iptables-save.

One child for each family: both in one process break it.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from meshagent.agent.capture import iptables
from meshagent.guard import legacy_text
from meshagent.lab import Lab
from meshagent.lab.host import Host
from tests.agent.capture.stand import start_guard
from tests.agent.capture.test_iptables import CASES

pytestmark = pytest.mark.root

_DUMP = """
import json, sys, iptc
tables = ("raw", "mangle", "filter", "nat")
print(json.dumps({name: iptc.easy.dump_table(name, ipv6=sys.argv[1] == "6") for name in tables}))
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as opened:
        yield opened


def witnessed(host: Host, family: int) -> dict[tuple[str, str], list[str]]:
    """(table, chain) -> its rules as sorted words, of our chains and of jumps to them."""
    dump = json.loads(host.run([sys.executable, "-c", _DUMP, str(family)]).stdout)
    found = {}
    for table, chains in dump.items():
        for chain, rules in chains.items():
            kept = [_words(rule) for rule in rules if chain.startswith("MESHAGENT_") or "MESHAGENT_" in str(rule)]
            if kept or chain.startswith("MESHAGENT_"):
                found[table, chain] = kept
    return found


def written(text: str, family: int) -> dict[tuple[str, str], list[str]]:
    """The same of our own text."""
    found: dict[tuple[str, str], list[str]] = {}
    for table, ours in legacy_text.merged(text)[family].items():
        for chain, rules in ours.chains.items():
            found[table, chain] = [_plain(rule.text) for rule in rules]
        for jump in ours.jumps:
            found.setdefault((table, jump.chain), []).append(_plain(jump.rule.text))
    return found


#: What iptables-save spells out and python-iptables says by where it stands.
_SHORT = {"-s": "src", "-d": "dst", "-p": "protocol", "-i": "in-interface", "-o": "out-interface", "-j": "target"}


def _plain(text: str) -> str:
    """``-p tcp -m tcp --dport 53 -j X`` -> its facts in one order: ``dport=53 protocol=tcp target=X``."""
    facts, words = [], iter(shlex.split(text))
    not_ = ""
    key = ""
    for word in words:
        if word == "!":
            not_ = "!"
        elif word == "-m":
            next(words)
        elif word in _SHORT or word.startswith("--"):
            key = _SHORT.get(word, word.removeprefix("--"))
            facts.append(f"{key}={not_}")
            not_ = ""
        else:
            facts[-1] += word if facts[-1].endswith(("=", "=!")) else f" {word}"
    return " | ".join(sorted(facts))


def _words(rule: dict[str, Any]) -> str:
    facts = []
    for key, value in rule.items():
        if key == "counters":
            continue
        if key == "target" and isinstance(value, dict):
            ((name, options),) = value.items()
            facts.append(f"target={name}")
            facts += _options(options)
        elif isinstance(value, dict):
            facts += _options(value)
        else:
            facts.append(f"{key}={value}")
    return " | ".join(sorted(facts))


def _options(options: dict[str, Any]) -> list[str]:
    joined = {key: " ".join(value) if isinstance(value, list) else str(value) for key, value in options.items()}
    return [f"{key}={value.replace('! ', '!')}" for key, value in joined.items()]


@pytest.mark.parametrize("family", [4, 6])
def test_an_independent_witness_reads_back_every_rule_of_every_case(lab: Lab, family: int) -> None:
    host = lab.host(f"w{family}")
    _, guard = start_guard(host)
    try:
        for name, intent in CASES.items():
            ruleset = iptables.render(intent)
            guard.apply(ruleset)
            assert witnessed(host, family) == written(ruleset.rules + ruleset.anchor, family), name
        guard.remove(anchor=True)
        assert witnessed(host, family) == {}
    finally:
        guard.quit()
        guard.close()
