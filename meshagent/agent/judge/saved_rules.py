"""``iptables-save`` read as chains of rules for one packet (iptables-extensions(8)). Pure."""

import re
import shlex
from collections.abc import Iterator

from meshagent.agent.judge.packets import Chains, Fate, Holds, Rule

_VERDICTS = {"ACCEPT": "accept", "DROP": "refuse", "REJECT": "refuse", "RETURN": "return"}
#: Targets that let the packet go on to the next rule.
_PASSING = {"LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "CT", "NOTRACK", "CONNSECMARK", "SECMARK", "CLASSIFY"}


def parse(text: str, port: int) -> tuple[Chains, dict[str, Fate]]:
    """(chains, policies of the built-in ones) of a table's save; a line that makes no sense is left out."""
    chains: dict[str, list[Rule]] = {}
    policies: dict[str, Fate] = {}
    for line in text.splitlines():
        head = re.match(r":(\S+) (\S+)", line)
        if head:
            chains[head[1]] = []
            if head[2] != "-":
                policies[head[1]] = Fate.ACCEPTED if head[2] == "ACCEPT" else Fate.REFUSED
        elif line.startswith("-A "):
            words = _words(line)
            if len(words) > 2:
                chains.setdefault(words[1], []).append(_rule(words[2:], port))
    return chains, policies


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quote that doesn't end
        return []


def _rule(words: list[str], port: int) -> Rule:
    holds, action = Holds.YES, ""
    for negated, option, values in _options(words):
        if option in ("-j", "--jump", "-g", "--goto"):
            action = _action(option, values[0] if values else "")
            continue
        each = _match(option, values, port)
        holds = holds & (~each if negated else each)
    return Rule(holds, action)


def _options(words: list[str]) -> Iterator[tuple[bool, str, list[str]]]:
    """(negated, option, its values) of a rule."""
    negated = False
    place = 0
    while place < len(words):
        word, place = words[place], place + 1
        if word == "!":
            negated = True
            continue
        values = []
        while place < len(words) and words[place] != "!" and not re.match(r"--?[A-Za-z]", words[place]):
            values.append(words[place])
            place += 1
        yield negated, word, values
        negated = False
        if word in ("-j", "--jump", "-g", "--goto"):
            return  # what follows are the target's own options


def _action(option: str, target: str) -> str:
    if target in _VERDICTS:
        return _VERDICTS[target]
    if target in _PASSING:
        return ""
    return f"{'goto' if option in ('-g', '--goto') else 'jump'} {target}"


def _match(option: str, values: list[str], port: int) -> Holds:
    first = values[0] if values else ""
    if option in ("-m", "--match", "--comment", "--reject-with", "--syn"):
        return Holds.YES
    if option in ("-p", "--protocol"):
        return _yes(first in ("tcp", "6", "all", "0"))
    if option in ("--dport", "--destination-port", "--dports", "--destination-ports", "--ports"):
        return _yes(any(_in_range(part, port) for part in first.split(",")))
    if option in ("--ctstate", "--state"):
        return _yes("NEW" in first.split(","))
    if option in ("-i", "--in-interface"):
        return Holds.NO if first == "lo" else Holds.MAYBE
    if option in ("-s", "--source", "-d", "--destination"):
        return Holds.YES if first in ("0.0.0.0/0", "::/0") else Holds.MAYBE
    if option == "--rt-type":
        return Holds.NO  # a routing header, which no ordinary packet has
    if option == "--dst-type":
        return _yes("LOCAL" in first.split(","))
    return Holds.MAYBE


def _yes(holds: bool) -> Holds:
    return Holds.YES if holds else Holds.NO


def _in_range(part: str, port: int) -> bool:
    low, _, high = part.partition(":")
    try:
        return int(low or 0) <= port <= int(high or low or 65535)
    except ValueError:
        return False
