"""What values may be: small checks that take a place in a tree and return a value, or report and raise ``WrongError``.

Strings that later reach a rule, a unit name or a command are checked by what is allowed, never by what is not. A
mapping or list goes on after a wrong item, so that a person sees all mistakes at once.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_network
from typing import Any, TypeVar

from meshagent.config.settings import PortRange
from meshagent.config.tree import ConfigError, Node, Problem
from meshagent.model.address import HostPort, IPAddress, IPNetwork, parse_host_port, parse_ip
from meshagent.model.errors import UsageError
from meshagent.model.names import is_label

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class WrongError(Exception):
    """A value was reported as wrong; whoever holds it goes on without it."""


@dataclass(frozen=True)
class At:
    """A place in a file: the value there, its path, and the list that problems go to."""

    file: str
    node: Node
    path: str = ""
    problems: list[Problem] = field(default_factory=list)

    def report(self, text: str, remedy: str = "") -> None:
        """Note a problem at this place."""
        self.problems.append(Problem(self.file, self.node.line, self.path, text, remedy))

    def wrong(self, text: str, remedy: str = "") -> WrongError:
        """Note a problem; the caller raises what comes back."""
        self.report(text, remedy)
        return WrongError(text)

    def child(self, node: Node, step: str) -> "At":
        """A place below this one; ``step`` is ``key`` or ``[3]``."""
        path = f"{self.path}{step}" if step.startswith("[") or not self.path else f"{self.path}.{step}"
        return At(self.file, node, path, self.problems)


Check = Callable[[At], T]


def whole(file: str, node: Node, check: Check[T]) -> T:
    """The checked value of a document. Raises ``ConfigError`` with every problem."""
    at = At(file, node)
    try:
        value = check(at)
    except WrongError:
        raise ConfigError(tuple(sorted(at.problems))) from None
    if at.problems:
        raise ConfigError(tuple(sorted(at.problems)))
    return value


def shown(value: object) -> str:
    """A value as it may be quoted in a message: one line, not long, nothing that moves a terminal's cursor."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def fields(at: At, known: Mapping[str, Check[Any]]) -> dict[str, Any]:
    """The keys present, checked; unknown keys and wrong values are reported and left out. Null = not set."""
    if not isinstance(at.node.value, dict):
        raise at.wrong("must be a mapping of keys to values", f"known keys: {', '.join(sorted(known))}")
    good: dict[str, Any] = {}
    for key, node in at.node.value.items():
        if key not in known:
            named = key if re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", key, re.ASCII) else shown(key)
            at.child(node, named).report("is not a known key", _nearest(key, known))
        elif node.value is not None:
            try:
                good[key] = known[key](at.child(node, key))
            except WrongError:
                continue
    return good


def _nearest(key: str, known: Mapping[str, Check[Any]]) -> str:
    from difflib import get_close_matches  # only on the way to an error

    near = get_close_matches(key[:60], known, n=1)
    return f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"


def items(check: Check[T], most: int = 256) -> Check[tuple[T, ...]]:
    """A list of values; a single value stands for a list of one."""

    def checked(at: At) -> tuple[T, ...]:
        nodes = at.node.value if isinstance(at.node.value, tuple) else (at.node,)
        if len(nodes) > most:
            raise at.wrong(f"has {len(nodes)} items", f"at most {most}")
        good: list[T] = []
        for index, node in enumerate(nodes):
            try:
                good.append(check(at.child(node, f"[{index}]") if nodes[0] is not at.node else at))
            except WrongError:
                continue
        return tuple(good)

    return checked


def choice(kind: type[E]) -> Check[E]:
    """One of the words of an enumeration."""

    def checked(at: At) -> E:
        if isinstance(at.node.value, str) and at.node.value in kind.__members__.values():
            return kind(at.node.value)
        raise at.wrong(f"{shown(at.node.value)} is not one of its values", f"use {', '.join(kind)}")

    return checked


def integer(least: int, most: int) -> Check[int]:
    """A whole number within bounds."""

    def checked(at: At) -> int:
        value = at.node.value
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise at.wrong(f"{shown(value)} is not a number from {least} to {most}", f"write a number, {least} to {most}")

    return checked


port = integer(1, 65535)


def matching(pattern: str, what: str, remedy: str, *, empty: bool = False) -> Check[str]:
    """Text that matches ``pattern`` as a whole (ASCII); ``empty`` also allows ''."""
    compiled = re.compile(pattern, re.ASCII)

    def checked(at: At) -> str:
        value = at.node.value
        if isinstance(value, str) and (compiled.fullmatch(value) or (empty and not value)):
            return value
        raise at.wrong(f"{shown(value)} is not {what}", remedy)

    return checked


def label(at: At) -> str:
    """One DNS label (RFC 1123)."""
    value = at.node.value
    if isinstance(value, str) and is_label(value):
        return value
    raise at.wrong(f"{shown(value)} is not a DNS label", "use a-z, 0-9 and '-', at most 63 characters")


def port_range(at: At) -> PortRange:
    """``8080`` or ``8000-8100``."""
    value = at.node.value
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", str(value), re.ASCII)
    if match and not isinstance(value, bool):
        first, last = int(match[1]), int(match[2] or match[1])
        if 1 <= first <= last <= 65535:
            return PortRange(first, last)
    raise at.wrong(f"{shown(value)} is not a port or range of ports", "write it like 8080 or 8000-8100")


def network(at: At) -> IPNetwork:
    """``10.0.0.0/8``, ``fd00::/8`` or a single address; bits behind the prefix length must be zero."""
    value = at.node.value
    if isinstance(value, str) and "%" not in value:
        try:
            return ip_network(value)
        except ValueError:
            pass
    raise at.wrong(f"{shown(value)} is not a network", "write it like 10.0.0.0/8 or fd00::/8, host bits zero")


def address(at: At) -> IPAddress:
    """An address that others can reach: no zone id, not unspecified, loopback or multicast."""
    ip = parse_ip(at.node.value) if isinstance(at.node.value, str) else None
    if ip is None:
        raise at.wrong(f"{shown(at.node.value)} is not an IP address", "write it like 10.0.0.5 or 2001:db8::5")
    if ip.is_unspecified or ip.is_loopback or ip.is_multicast or ip.is_link_local:
        raise at.wrong(f"{ip} can't be reached from other hosts", "name an address of this host that others reach")
    return ip


def host_port(default_port: int) -> Check[HostPort]:
    """``HOST:PORT``; a host is a DNS name or an IP address."""

    def checked(at: At) -> HostPort:
        value = at.node.value
        if not isinstance(value, str):
            raise at.wrong(f"{shown(value)} is not HOST:PORT", "write it like hub.example:15012")
        try:
            parsed = parse_host_port(value, default_port)
        except UsageError as error:
            raise at.wrong(f"{shown(value)} is not HOST:PORT", error.hint) from None
        if not (parse_ip(parsed.host) or re.fullmatch(_HOST, parsed.host, re.ASCII)):
            raise at.wrong(f"{shown(value)} does not name a host", "use a DNS name or an IP address")
        return parsed

    return checked


_HOST = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})){0,40}\.?"

_LABEL_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,125}[A-Za-z0-9])?", re.ASCII)
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", re.ASCII)


def labels(at: At) -> tuple[tuple[str, str], ...]:
    """Kubernetes' form of labels, sorted by key; a number or true/false is an error, as it is there."""
    if not isinstance(at.node.value, dict):
        raise at.wrong("must be a mapping of labels", "write it like {version: v2}")
    if len(at.node.value) > 32:
        raise at.wrong(f"has {len(at.node.value)} labels", "at most 32")
    good = []
    for key, node in at.node.value.items():
        if not _LABEL_KEY.fullmatch(key):
            at.child(node, shown(key)).report("is not a label's name", "use letters, digits and . _ - /")
        elif not isinstance(node.value, str) or not _LABEL_VALUE.fullmatch(node.value):
            remedy = "use at most 63 letters, digits and . _ -; put numbers and true/false in quotes"
            at.child(node, key).report(f"{shown(node.value)} is not a label's value", remedy)
        else:
            good.append((key, node.value))
    return tuple(sorted(good))


locality = matching(
    r"[A-Za-z0-9._-]{1,63}(/[A-Za-z0-9._-]{1,63}){0,2}", "a locality", "write it like region/zone", empty=True
)
