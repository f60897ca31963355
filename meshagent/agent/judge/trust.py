"""Access rules that go by the caller's address, and whether they keep their meaning behind the mesh. Pure.

Where the proxy may speak from its caller's address, every rule means what it meant. Where it may not (a service on
loopback only, a proxy without CAP_NET_ADMIN) all mesh callers look like this host: never like 127.0.0.1, so what
trusts loopback alone stays closed, but what names other addresses no longer means who calls.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from meshagent.agent.judge.risks import Risk

ADDRESS_TRUST = "address-trust"
_ANYBODY = {"all", "0.0.0.0/0", "::/0", "::0/0", "*", "any"}
_LOOPBACK_WORDS = {"localhost", "local"}


@dataclass(frozen=True, slots=True)
class TrustRule:
    """One rule by address. ``line`` counts from 1, 0 where none says it; ``loopback``: it names loopback only.

    ``seen`` is False for rules that only the program itself can read, in tables of its own (``file`` is then empty).
    """

    file: str
    line: int
    rule: str
    loopback: bool
    seen: bool = True


#: What follows is for a person: reading the table takes a login to the database.
_GRANTS = TrustRule("", 0, "grants by host, shown by: SELECT user, host FROM mysql.user", loopback=False, seen=False)


@dataclass(frozen=True, slots=True)
class Trusting:
    """A service and its rules. ``keeps``: the application sees its caller's own address."""

    program: str
    port: int
    keeps: bool
    rules: tuple[TrustRule, ...]


def read_rules(program: str, files: Iterable[tuple[str, str]]) -> tuple[TrustRule, ...]:
    """Rules by address in the configuration files (path, text) of a program."""
    if program == "mariadb":
        return (_GRANTS,)
    found: list[TrustRule] = []
    for path, text in files:
        for line, rule, addresses in _READERS[program](_joined(text)):
            named = [address for address in addresses if address.lower() not in _ANYBODY]
            if named:
                found.append(TrustRule(path, line, " ".join(rule.split())[:160], all(map(_is_loopback, named))))
    return tuple(found)


def explain(found: Trusting, rule: TrustRule) -> str:
    """What becomes of a rule."""
    if not rule.seen and found.keeps:
        return "a grant for one host keeps its meaning: mesh callers come with their own address"
    if not rule.seen:
        return "a grant for one host loses its meaning, '%' doesn't: mesh callers come from this host's own address"
    if found.keeps:
        return "keeps its meaning: mesh callers come with their own address"
    if rule.loopback:
        return "mesh callers don't count as local: they come from this host's own address, never from loopback"
    return "loses its meaning: all mesh callers come from this host's own address"


def trust_risk(found: Iterable[tuple[str, Trusting]]) -> Iterator[Risk]:
    """(name of the declared service, what its rules are): those that would let in, or keep out, the wrong ones."""
    for name, service in found:
        lost = [rule for rule in service.rules if rule.seen and not (service.keeps or rule.loopback)]
        if lost:
            yield Risk(
                ADDRESS_TRUST,
                f"{name}: {service.program} decides by its caller's address ({lost[0].file} line {lost[0].line}: "
                f"{lost[0].rule}), and on port {service.port} all mesh callers would have this host's address",
                "let it listen on an address of this host instead of loopback, or on all of them",
            )


# --- readers: (line, rule, addresses it names) -----------------------------------------------------------------------

_Found = Iterator[tuple[int, str, list[str]]]
_Lines = Iterable[tuple[int, str]]


def _pg_hba(lines: _Lines) -> _Found:
    """``host DATABASE USER ADDRESS [MASK] METHOD`` (PostgreSQL manual, chapter Client Authentication)."""
    for number, line in lines:
        words = line.split("#")[0].split()
        if len(words) >= 5 and words[0].startswith("host") and "reject" not in words[4:6]:
            yield number, line, [words[3]]


def _postfix(lines: _Lines) -> _Found:
    """``mynetworks``; without it ``mynetworks_style``, each of which holds this host's own addresses (postconf(5))."""
    settings = {line.partition("=")[0].strip(): (number, line) for number, line in lines}
    number, line = settings.get("mynetworks", (0, ""))
    if line:
        yield number, line, re.split(r"[,\s]+", line.partition("=")[2].strip())
        return
    number, line = settings.get("mynetworks_style", (0, "mynetworks_style = host (the default)"))
    yield number, line, ["this host's own addresses"]


def _redis(lines: _Lines) -> _Found:
    """Protected mode refuses every other host while no password is set."""
    settings = {line.split()[0].lower(): (number, line) for number, line in lines if line.split()}
    if "requirepass" in settings or settings.get("protected-mode", (0, ""))[1].endswith("no"):
        return
    number, line = settings.get("protected-mode", (0, "protected-mode yes (the default)"))
    yield number, line, ["127.0.0.1"]


def _apache(lines: _Lines) -> _Found:
    for number, line in lines:
        match = re.match(r"\s*(?:Require\s+(?:not\s+)?(ip|host|local)\b|(?:Allow|Deny)\s+from\b)\s*(.*)", line, re.I)
        if match:
            yield number, line, match[2].split() or ["local"]


def _nginx(lines: _Lines) -> _Found:
    for number, line in lines:
        for match in re.finditer(r"(?:^|[;{\s])(allow|deny)\s+([^;\s]+)\s*;", line.split("#")[0]):
            yield number, match[0].strip(" ;{"), [match[2]]


_READERS: Mapping[str, Callable[[_Lines], _Found]] = {
    "postgresql": _pg_hba,
    "postfix": _postfix,
    "redis": _redis,
    "apache": _apache,
    "nginx": _nginx,
}


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines without comments, continuation lines (Postfix's, and those that end with a backslash) joined."""
    number, whole = 0, ""
    for place, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not line.strip():
            continue
        if whole.endswith("\\") or (line[0].isspace() and re.match(r"mynetworks\s*=", whole)):
            whole = whole.rstrip("\\") + " " + line.strip()
            continue
        if whole:
            yield number, whole
        number, whole = place, line
    if whole:
        yield number, whole


def _is_loopback(text: str) -> bool:
    if text.lower() in _LOOPBACK_WORDS:
        return True
    try:
        return ip_network(text.replace("[", "").replace("]", ""), strict=False).is_loopback
    except ValueError:
        return False
