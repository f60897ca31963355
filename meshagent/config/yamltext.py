"""YAML 1.2 text -> trees with line numbers, within bounds that no honest file reaches.

Scalars follow the core schema (YAML 1.2.2 section 10.3): ``yes`` and ``1:30`` are text, ``017`` is seventeen, digits
are ASCII. The event stream is judged before anything is built: the parser is a state machine, so a document nested a
thousand levels deep ends at the limit and never as a recursion; aliases cost what they expand to (a "YAML bomb" is
nine lines that expand to a thousand million values). Tags are refused: nothing here needs them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from meshagent.config.tree import ConfigError, Node, Problem, Scalar

MAX_BYTES = 256 << 10
MAX_DEPTH = 16
MAX_VALUES = 20_000
MAX_DOCUMENTS = 256

_INT = re.compile(r"[-+]?[0-9]{1,18}|0x[0-9a-fA-F]{1,15}|0o[0-7]{1,20}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,17}|[0-9]{1,17}\.[0-9]{0,17})([eE][-+]?[0-9]{1,3})?", re.ASCII)
_NULL = ("", "~", "null", "Null", "NULL")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class _RefusedError(Exception):
    """The text can't be used; says where and why."""

    def __init__(self, line: int, text: str, remedy: str = "") -> None:
        super().__init__(text)
        self.problem = (line, text, remedy)


def parse_yaml(data: bytes, file: str) -> tuple[Node, ...]:
    """All documents of ``data``; empty documents are left out. Raises ``ConfigError`` naming ``file``."""
    try:
        return tuple(_Builder().documents(_events(_decode(data))))
    except _RefusedError as refused:
        line, text, remedy = refused.problem
        raise ConfigError((Problem(file, line, "", text, remedy),)) from None


def _decode(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise _RefusedError(0, f"the file is larger than {MAX_BYTES >> 10} KiB")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _RefusedError(line, "this is not UTF-8 text", "save the file as UTF-8") from None


def _events(text: str) -> Iterator[Any]:
    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _RefusedError(mark.line + 1 if mark else 0, f"not YAML: {error.problem or error.context}") from None
    except YAMLError as error:  # a character that YAML does not allow
        raise _RefusedError(0, f"not YAML: {str(error).splitlines()[0]}") from None
    except (ValueError, OverflowError) as error:  # an escape beyond Unicode, a version directive of many digits
        raise _RefusedError(0, f"not YAML: {error}") from None


@dataclass
class _Builder:
    """Builds trees from events; ``spent`` counts values, aliases at their expanded size."""

    spent: int = 0
    anchors: dict[str, tuple[Node, int]] = field(default_factory=dict)

    def documents(self, events: Iterator[Any]) -> Iterator[Node]:
        count = 0
        for event in events:
            if not isinstance(event, DocumentStartEvent):
                continue
            count += 1
            if count > MAX_DOCUMENTS:
                raise _RefusedError(_line(event), f"more than {MAX_DOCUMENTS} documents")
            self.anchors = {}
            node = self._value(next(events), events, 0)
            if node.value is not None:
                yield node

    def _value(self, event: Any, events: Iterator[Any], depth: int) -> Node:
        self._spend(1, event)
        if isinstance(event, AliasEvent):
            return self._alias(event)
        if event.tag is not None:
            raise _RefusedError(_line(event), "tags are not used here", "remove the word that starts with '!'")
        if depth > MAX_DEPTH:
            raise _RefusedError(_line(event), f"nested deeper than {MAX_DEPTH} levels")
        before = self.spent
        if isinstance(event, ScalarEvent):
            plain = event.style is None or event.style == ""
            node = Node(_line(event), _scalar(event.value) if plain else event.value)
        elif isinstance(event, SequenceStartEvent):
            node = Node(_line(event), tuple(self._items(events, depth + 1)))
        else:
            assert isinstance(event, MappingStartEvent)
            node = Node(_line(event), dict(self._entries(events, depth + 1)))
        if event.anchor:
            self.anchors[str(event.anchor)] = (node, self.spent - before)
        return node

    def _alias(self, event: Any) -> Node:
        if event.anchor not in self.anchors:
            raise _RefusedError(_line(event), "an alias to something that is not complete before it")
        node, size = self.anchors[event.anchor]
        self._spend(size, event)
        return node

    def _items(self, events: Iterator[Any], depth: int) -> Iterator[Node]:
        for event in events:
            if isinstance(event, SequenceEndEvent):
                return
            yield self._value(event, events, depth)

    def _entries(self, events: Iterator[Any], depth: int) -> Iterator[tuple[str, Node]]:
        seen: set[str] = set()
        for event in events:
            if isinstance(event, MappingEndEvent):
                return
            if not isinstance(event, ScalarEvent) or event.tag is not None:
                raise _RefusedError(_line(event), "a key must be a plain word")
            if event.value in seen:
                raise _RefusedError(_line(event), f"{event.value[:60]!r} is there twice", "keep one of them")
            seen.add(event.value)
            line = _line(event)
            yield event.value, Node(line, self._value(next(events), events, depth).value)

    def _spend(self, values: int, event: Any) -> None:
        self.spent += values
        if self.spent > MAX_VALUES:
            raise _RefusedError(_line(event), f"more than {MAX_VALUES} values (aliases count at their full size)")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _scalar(text: str) -> Scalar:
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text)
    return text  # also numbers of more digits than anyone means: whoever wants a number refuses the text
