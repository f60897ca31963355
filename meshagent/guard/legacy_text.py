"""Text of the legacy backend: what the guard accepts, and how the kernel's tables get from what they hold to it. Pure.

A ruleset is one text with a part for each family (``# IPv4…``, ``# IPv6…``), each in the words of iptables-save. Ours
are the chains MESHAGENT_* and the rules elsewhere that lead to them; everything else is somebody else's and never
appears in what is written: iptables-restore --noflush leaves it and its counters as they are.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from meshagent.guard.wire import RequestError
from meshagent.model.marks import CHAIN_PREFIX

FAMILIES = (4, 6)
#: Refusals are there before anything is redirected.
TABLES = ("raw", "mangle", "filter", "nat")
ANCHOR_CHAIN = f"{CHAIN_PREFIX}ANCHOR"
#: The one chain to which we jump behind everybody's rules, not before them: what others turn elsewhere stays theirs.
LAST_CHAIN = f"{CHAIN_PREFIX}ARRIVING"

_CHAIN = rf"{CHAIN_PREFIX}[A-Z0-9_]{{1,18}}"
_OPTION = (
    "-[psdmoijg]|--(?:comment|dport|dports|mark|uid-owner|gid-owner|tcp-flags|dst-type|ctdir|ctstate|set|remove|"
    "name|mask|rsource|to-ports|reject-with|zone-orig|set-xmark|nowildcard|transparent|ctorigdstport)"
)
_WORD = rf"(?:!|{_OPTION}|[A-Za-z0-9_.:/,@][A-Za-z0-9_.:/,@-]*|\"[A-Za-z0-9 .,:;()-]{{1,255}}\")"
_TARGET = rf"-[jg] (?:{_CHAIN}|RETURN|REDIRECT|REJECT|CT|CONNMARK|MARK)(?= |$)"
_BUILTIN = "OUTPUT|INPUT|FORWARD|PREROUTING"
_LINE = re.compile(
    rf"\*(?:{'|'.join(TABLES)})|COMMIT|:{_CHAIN} - \[0:0\]|-A (?:{_CHAIN}|{_BUILTIN})(?: {_WORD})+",
    re.ASCII,
)
_HEAD = re.compile(r"# IPv([46])[ -~]*")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_RULE = re.compile(r"(?:\[(\d+):(\d+)\] )?-A (\S+) ?(.*)")
_LEADS = re.compile(rf"-[jg] {CHAIN_PREFIX}\w+")
_JUMP = re.compile(r"-[jg] (\S+)")
#: Lines that were found to be ours; 5,000 addresses are 5,200 of them, 1.5 MB.
_REMEMBERED = 8192
_LONGEST = 1000


@dataclass(frozen=True, slots=True)
class Rule:
    """``text`` is what stands behind ``-A CHAIN``."""

    text: str
    packets: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Jump:
    """A rule in a chain of the kernel that leads to ours. ``placed``: no rule of others stands before it, or, for the
    one that has to be the last, behind it."""

    chain: str
    rule: Rule
    placed: bool = True


@dataclass(slots=True)
class Table:
    """What is ours in one table: our chains, and the rules of others' chains that lead to them."""

    chains: dict[str, list[Rule]] = field(default_factory=dict)
    jumps: list[Jump] = field(default_factory=list)


#: Table name -> what is ours in it.
Tables = dict[str, Table]


def require_legacy(text: str) -> None:
    """``text`` can only make or fill our chains and lead to them; else ``RequestError`` with code refused-text."""
    if text and not text.endswith("\n"):
        raise RequestError("refused-text", "the last line has no newline")
    for line in text.splitlines():
        if len(line) > _LONGEST or not _is_ours(line):
            raise RequestError("refused-text", f"not a rule of our chains: {line[:120]!r}")


@lru_cache(maxsize=_REMEMBERED)
def _is_ours(line: str) -> bool:
    """Nearly all lines of a text were in the one before: 5,000 addresses are 30 ms to read and 3 ms to know."""
    return bool(_HEAD.fullmatch(line)) or (bool(_LINE.fullmatch(line)) and _leads_to_ours(line))


def _leads_to_ours(line: str) -> bool:
    """Targets are few and known; a rule outside our chains can only jump to one of ours."""
    if not line.startswith("-A "):
        return True
    plain = _QUOTED.sub("", line)
    targets = _JUMP.findall(plain)
    if len(targets) > 1 or (targets and not re.search(_TARGET, plain)):
        return False
    return line.startswith(f"-A {CHAIN_PREFIX}") or bool(targets and targets[0].startswith(CHAIN_PREFIX))


def parts(text: str) -> dict[int, str]:
    """The text of each family."""
    found: dict[int, list[str]] = {}
    family = 0
    for line in text.splitlines(keepends=True):
        if line.startswith("#") and (head := _HEAD.fullmatch(line.rstrip("\n"))):
            family = int(head[1])
        elif family:
            found.setdefault(family, []).append(line)
    return {family: "".join(lines) for family, lines in found.items()}


def parse(text: str) -> Tables:
    """What is ours in the output of iptables-save (with or without counters), or in our own text."""
    tables: Tables = {}
    table = Table()
    foreign: set[str] = set()
    for line in text.splitlines():
        if line.startswith("*"):
            table, foreign = tables.setdefault(line[1:].strip(), Table()), set()
        elif line.startswith(f":{CHAIN_PREFIX}"):
            table.chains.setdefault(line[1:].split(" ", 1)[0], [])
        elif found := _RULE.match(line):
            rule = Rule(found[4], int(found[1] or 0), int(found[2] or 0))
            if found[3].startswith(CHAIN_PREFIX):
                table.chains.setdefault(found[3], []).append(rule)
            elif _LEADS.search(_QUOTED.sub("", rule.text)):
                table.jumps.append(Jump(found[3], rule, placed=_is_last(rule) or found[3] not in foreign))
            else:
                foreign.add(found[3])
                _overtaken(table, found[3])
    return {name: table for name, table in tables.items() if table.chains or table.jumps}


def _is_last(rule: Rule) -> bool:
    return rule.text.endswith(f" {LAST_CHAIN}")


def _overtaken(table: Table, chain: str) -> None:
    """A rule of others stands behind what has to be the last in its chain."""
    for number, jump in enumerate(table.jumps):
        if jump.chain == chain and _is_last(jump.rule):
            table.jumps[number] = Jump(chain, jump.rule, placed=False)


def placed(tables: Mapping[str, Table]) -> bool:
    """Whether all our jumps are where they have to be."""
    return all(jump.placed for table in tables.values() for jump in table.jumps)


def merged(*texts: str) -> dict[int, Tables]:
    """Texts of ours laid over each other, later ones win chain by chain: rules, the anchor, gates that are open."""
    result: dict[int, Tables] = {family: {} for family in FAMILIES}
    for text in texts:
        for family, part in parts(text).items():
            for name, table in parse(part).items():
                held = result[family].setdefault(name, Table())
                held.chains |= table.chains
                held.jumps += table.jumps
    return result


def without_zones(tables: Mapping[str, Table]) -> Tables:
    """For a kernel without conntrack zones: rules that ask for one are left out, chains stay."""
    found = {}
    for name, table in tables.items():
        chains = {chain: [r for r in rules if " --zone-orig " not in r.text] for chain, rules in table.chains.items()}
        found[name] = Table(chains, table.jumps)
    return found


def transition(have: Mapping[str, Table], want: Mapping[str, Table], *, lead: bool = False) -> str:
    """Text for iptables-restore --noflush --counters that makes our part of a family ``want``; empty: it is already.

    Only what differs is written, so the counters of what stays go on; a rule that moves takes its counters along.
    ``lead``: jumps that others have put rules before go to the front again.
    """
    order = [name for name in TABLES if name in want] + [name for name in reversed(TABLES) if name not in want]
    return "".join(_table(name, have.get(name, Table()), want.get(name, Table()), lead) for name in order)


def _table(name: str, have: Table, want: Table, lead: bool) -> str:
    changed = {chain: rules for chain, rules in want.chains.items() if _texts(have.chains.get(chain)) != _texts(rules)}
    stale = [chain for chain in have.chains if chain not in want.chains]
    moves = [*_jump_changes(have, want, lead)]
    if not changed and not stale and not moves:
        return ""
    lines = [f"*{name}", *(f":{chain} - [0:0]" for chain in (*changed, *stale))]
    for chain, rules in changed.items():
        counts = {rule.text: rule for rule in have.chains.get(chain, ())}
        for rule in rules:
            met = counts.get(rule.text, rule)
            lines.append(f"[{met.packets}:{met.size}] -A {chain} {rule.text}")
    lines += [*moves, *(f"-X {chain}" for chain in stale), "COMMIT", ""]
    return "\n".join(lines)


def _jump_changes(have: Table, want: Table, lead: bool) -> Iterator[str]:
    """Those that should be there once stay where they are, unless they are to ``lead``; others of ours go."""
    left = [(jump.chain, jump.rule.text) for jump in want.jumps]
    again = {}
    for jump in have.jumps:
        key = jump.chain, jump.rule.text
        if key in left and (jump.placed or not lead):
            left.remove(key)
        else:
            again[key] = f"[{jump.rule.packets}:{jump.rule.size}] "
            yield f"-D {jump.chain} {jump.rule.text}"
    for chain, text in left:
        verb = f"-A {chain}" if text.endswith(f" {LAST_CHAIN}") else f"-I {chain} 1"
        yield f"{again.get((chain, text), '')}{verb} {text}"


def texts(families: Mapping[int, Tables]) -> object:
    """Rules and jumps without their counters: equal for equal rules."""
    return {
        (family, name): (
            {chain: [rule.text for rule in rules] for chain, rules in table.chains.items()},
            sorted((jump.chain, jump.rule.text) for jump in table.jumps),
        )
        for family, tables in families.items()
        for name, table in tables.items()
    }


def _texts(rules: list[Rule] | None) -> list[str] | None:
    return None if rules is None else [rule.text for rule in rules]


def holds(have: Mapping[str, Table], want: Mapping[str, Table]) -> bool:
    """Whether everything of ``want`` is there, by count: other versions of iptables-save print rules differently."""
    return all(name in have and _shape(have[name]) == _shape(table) for name, table in want.items())


def _shape(table: Table) -> object:
    return {chain: len(rules) for chain, rules in table.chains.items()}, sorted(jump.chain for jump in table.jumps)
