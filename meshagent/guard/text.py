"""Which nft text the guard runs: only text that can't touch any table but ours. Pure.

The guard runs as root whatever it is given, so it doesn't trust the renderer. It doesn't understand nft's whole
grammar either; it accepts two narrow forms. A table text is one block ``table inet NAME { … }`` whose outermost brace
closes at the very end, without ``include``, ``define``, ``$`` or comments: nothing can follow it. Gate and update lines
are element changes of one of our tables, one per line, from a small alphabet.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from meshagent.guard.wire import RequestError

#: In quotes nft takes no escapes, so a string ends at the next quote; it is at most a comment of 128 bytes.
_STRING = re.compile(r'"[^"\n]{0,200}"')
#: Everything that is left outside strings. No '#' (comment), '$' (variable), quotes or backslashes.
_PLAIN = re.compile(r"[A-Za-z0-9_ \t\n.:/;,@&|()!=<>+{}\[\]-]*", re.ASCII)
_BRACE = re.compile(r"[{}]")
_FORBIDDEN = re.compile(r"\b(?:include|define|redefine|undefine)\b")

_ELEMENT = r"[0-9a-fA-Fx.:/ a-z_]{1,120}"
_UPDATE = re.compile(
    r"(?:flush (?:set|map)|(?:add|delete) element) inet (?P<table>[a-z_]{1,64}) [a-z0-9_]{1,64}"
    rf"(?: \{{ {_ELEMENT}(?:, {_ELEMENT})* \}})?",
    re.ASCII,
)


def require_table(text: str, name: str) -> None:
    """``text`` is exactly one block that defines ``table inet name``; else ``RequestError`` with code refused-text."""
    head = f"table inet {name} {{\n"
    if not text.startswith(head) or not text.endswith("}\n"):
        raise RequestError("refused-text", f"the text is not one block 'table inet {name} {{ … }}'")
    plain = _STRING.sub("", text)
    accepted = _PLAIN.match(plain)
    end = accepted.end() if accepted else 0
    if end != len(plain):
        raise RequestError("refused-text", f"unexpected {plain[end]!r} in the table text")
    if found := _FORBIDDEN.search(plain):
        raise RequestError("refused-text", f"{found[0]!r} is not allowed in the table text")
    _require_one_block(plain)


def _require_one_block(plain: str) -> None:
    depth = 0
    for brace in _BRACE.finditer(plain):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0 and brace.end() != len(plain) - 1:
            raise RequestError("refused-text", "something follows the table's block")
    if depth:
        raise RequestError("refused-text", "the table's braces don't match")


def require_updates(text: str, name: str) -> None:
    """``text`` is empty or only lines that change elements of sets and maps of ``table inet name``."""
    if not text:
        return
    if not text.endswith("\n"):
        raise RequestError("refused-text", "the last line has no newline")
    for line in text[:-1].split("\n"):
        found = _UPDATE.fullmatch(line)
        if found is None or found["table"] != name:
            raise RequestError("refused-text", f"not a change of elements of our table: {line[:80]!r}")


def with_owner(text: str, name: str) -> str:
    """The table text with ``flags owner``, for kernels from 5.12 on."""
    head = f"table inet {name} {{\n"
    return f"{head}\tflags owner;\n{text.removeprefix(head)}"


def with_elements(rules: str, sets: Mapping[str, Sequence[str]]) -> str:
    """The table text with its sets filled: for people. Sets the text doesn't define are left out."""
    for name, found in sets.items():
        head, block, rest = rules.partition(f"\tset {name} {{\n")
        if block and found:  # an empty list of elements is a syntax error to nft
            kind, _, rest = rest.partition("\n")
            rules = f"{head}{block}{kind}\n\t\telements = {{ {_LIST.join(found)} }}\n{rest}"
    return rules


#: One element a line.
_LIST = ",\n\t\t\t\t"


_BLOCK = re.compile(r"^\t(?P<kind>set|map|chain) (?P<name>\w+) \{\n(?P<body>.*?)^\t\}\n", re.MULTILINE | re.DOTALL)
_STATEMENT = re.compile(r'(?:"[^"\n]*"|[^";\n])+')
_HOOK = re.compile(r"type \w+ hook \w+ priority [\w +-]+")
_POLICY = re.compile(r"policy \w+")


@lru_cache(maxsize=4)
def _blocks(text: str) -> Mapping[str, re.Match[str]]:
    """By name, in the order of the text. Kept, because one change of the rules looks several times into both."""
    return {found["name"]: found for found in _BLOCK.finditer(text)}


def commands(text: str, name: str) -> str:
    """The same as ``text`` for a table that is there: one command for each chain, set, map and rule.

    ``table inet NAME { … }`` would define the table once more, with flags that must be those it has, and nft 1.0.6
    can't write all flags. Raises ``RequestError`` where something of the text would be lost, or would end a command:
    outside the block that held it, what follows would be a command of its own.
    """
    blocks = list(_BLOCK.finditer(text))
    rest = _BLOCK.sub("", text).replace(f"table inet {name} {{\n", "", 1)
    if rest.strip() != "}":
        raise RequestError("refused-text", f"not a set, map or chain of our table: {rest.strip()[:80]!r}")
    for found in blocks:
        _require_no_end(found)
    chains = [found for found in blocks if found["kind"] == "chain"]
    made = [f"add chain inet {name} {found['name']}{_braced(_hook(found))}\n" for found in chains]
    filled = (found for kind in ("set", "map") for found in blocks if found["kind"] == kind)
    made += [f"add {found['kind']} inet {name} {found['name']} {{\n{found['body']}\t}}\n" for found in filled]
    made += [f"add rule inet {name} {found['name']} {rule}\n" for found in chains for rule in _rules(found)]
    return "".join(made)


def _braced(hook: str) -> str:
    return f" {{ {hook} }}" if hook else ""


def _require_no_end(block: re.Match[str]) -> None:
    depth = 0
    for brace in _BRACE.finditer(_STRING.sub("", block["body"])):
        depth += 1 if brace[0] == "{" else -1
        if depth < 0:
            break
    if depth:
        raise RequestError("refused-text", f"the braces of {block['kind']} {block['name']} don't match")


def _rules(chain: re.Match[str]) -> tuple[str, ...]:
    return _statements(chain["body"])[_hook(chain).count(";") :]


@lru_cache(maxsize=256)
def _statements(body: str) -> tuple[str, ...]:
    """What nft takes for one hook, policy or rule: it ends with its line or a semicolon.

    Kept, because each change of the rules asks for most chains of the ones before and the ones after several times.
    """
    found = (statement[0].strip() for statement in _STATEMENT.finditer(body))
    return tuple(statement for statement in found if statement)


def emptied(contents: Sequence[tuple[str, str]], name: str) -> str:
    """Take everything out of the table that is in it, by kind and name; the table stays."""
    gone = (f"delete {kind} inet {name} {item}\n" for kind in _ORDER for found, item in contents if found == kind)
    return f"flush table inet {name}\n" + "".join(gone)


def exchanged(before: str, after: str, kept: Sequence[str], name: str, *, maps: bool = True) -> tuple[str, str]:
    """How to put ``after`` in the place of ``before`` inside the table: lines that take out what goes, and what comes.

    Without ``maps`` those are made anew: what is in them is not what ``before`` says.

    What is in both stays: chains, at the same hook; maps; the sets in ``kept``, with what is in them. Of a chain whose
    rules are the same, too, not one is touched, and its counters go on. A packet that is under way while the kernel
    goes from one generation of rules to the next began with the old rules, but is asked for the new elements, and the
    old chain and the new one at one hook are asked each for the generation of that moment. So where a map or a whole
    table follows another, a connection now and then met neither (measured, kernel 6.18: 4 of 66,595 over 2,000
    replacements).
    """
    old, new = _blocks(before), _blocks(after)
    stay = {item for item in old.keys() & new.keys() if item in kept or _same(old[item], new[item])}
    stay -= set() if maps else {item for item in stay if new[item]["kind"] == "map"}
    going = [found for item, found in old.items() if item not in stay]
    lost = {found["name"] for found in going}
    untouched = {item for item in stay if old[item][0] == new[item][0] and not lost & _named(old[item])}
    emptied = [item for item, found in old.items() if found["kind"] == "chain" and item not in untouched]
    gone = [f"flush chain inet {name} {item}\n" for item in emptied]
    gone += [
        f"delete {kind} inet {name} {found['name']}\n" for kind in _ORDER for found in going if found["kind"] == kind
    ]
    for item in untouched:
        after = after.replace(new[item][0], "", 1)
    return "".join(gone), after


_NAMED = re.compile(r"@(\w+)|\b(?:jump|goto) (\w+)")


def _named(block: re.Match[str]) -> set[str]:
    """Sets, maps and chains that a chain's rules name: none of them can go before those rules."""
    if block["kind"] != "chain":
        return set()
    return {one or other for one, other in _NAMED.findall(_STRING.sub("", block["body"]))}


#: A map's verdicts name chains.
_ORDER = ("map", "set", "chain")


def same_maps(before: str, after: str) -> bool:
    """Whether both define the same maps: gates that are open in one are open in the other then."""
    maps = [{found[0] for found in _blocks(text).values() if found["kind"] == "map"} for text in (before, after)]
    return maps[0] == maps[1]


def _same(one: re.Match[str], other: re.Match[str]) -> bool:
    """Chains are the same at the same hook, whatever rules are in them."""
    if one["kind"] != other["kind"]:
        return False
    return _hook(one) == _hook(other) if one["kind"] == "chain" else one[0] == other[0]


def _hook(chain: re.Match[str]) -> str:
    """Where the kernel calls the chain, and its policy: the statements it begins with, each with its semicolon."""
    first, second, *_ = *_statements(chain["body"]), "", ""
    if not _HOOK.fullmatch(first):
        return ""
    return f"{first}; {second};" if _POLICY.fullmatch(second) else f"{first};"
