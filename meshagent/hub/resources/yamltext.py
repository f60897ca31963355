"""YAML 1.2 to plain values, with the line of every field, within bounds. Pure.

Built on ruamel's event stream, so nothing grows before it was counted: aliases (the YAML bomb), tags, duplicate keys
and excess of depth or size end a document or the file with an error that names the line. Scalars resolve by the core
schema of YAML 1.2.2 section 10.3.2: ``yes`` and ``0777`` are not what they were in YAML 1.1.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

MAX_BYTES = 1 << 20
MAX_DOCUMENTS = 2_000
MAX_DEPTH = 32
MAX_NODES = 200_000

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,19}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,30}|[0-9]{1,30}(\.[0-9]{0,30})?)([eE][-+]?[0-9]{1,3})?", re.ASCII)

Path = tuple[str | int, ...]


class YamlProblem(Exception):  # noqa: N818 - collected and reported, seldom raised to anybody
    """What is wrong, and on which line (counted from 1)."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass(frozen=True, slots=True)
class Document:
    """One document: plain dicts, lists and scalars; ``lines`` maps the path of every field to its line."""

    value: Any
    line: int
    lines: dict[Path, int] = field(default_factory=dict)

    def line_of(self, path: Path) -> int:
        """The line of ``path``, or of the nearest field around it."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, self.line)


def read_documents(text: str) -> Iterator[Document]:
    """Every document that is not empty. Raises ``YamlProblem`` at the first thing that can't be read."""
    if len(text.encode()) > MAX_BYTES:
        raise YamlProblem(1, f"the file is bigger than {MAX_BYTES >> 10} KiB")
    reader = _Reader(_events(text))
    yield from reader.documents()


def _events(text: str) -> Iterator[Event]:
    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = str(error.problem or error.context or "not YAML")
        raise YamlProblem(mark.line + 1 if mark else 1, message) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise YamlProblem(1, f"not YAML: {str(error).splitlines()[0][:200]}") from error


class _Reader:
    """Builds values from events; counts every node before it is built."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._nodes = 0
        self._lines: dict[Path, int] = {}

    def documents(self) -> Iterator[Document]:
        count = 0
        for event in self._events:
            if not isinstance(event, DocumentStartEvent):
                continue
            count += 1
            if count > MAX_DOCUMENTS:
                raise YamlProblem(_line(event), f"more than {MAX_DOCUMENTS} documents in one file")
            self._lines = {}
            first = next(self._events)
            value = self._value(first, ())
            while not isinstance(next(self._events), DocumentEndEvent):
                pass
            if value is not None:
                yield Document(value, _line(first), self._lines)

    def _value(self, event: Event, path: Path) -> Any:
        self._admit(event, path)
        self._lines.setdefault(path, _line(event))
        if isinstance(event, ScalarEvent):
            return _scalar(event)
        return self._mapping(path) if isinstance(event, MappingStartEvent) else self._sequence(path)

    def _admit(self, event: Event, path: Path) -> None:
        self._nodes += 1
        line = _line(event)
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            raise YamlProblem(line, "anchors and aliases are not accepted: write the value out")
        if self._nodes > MAX_NODES:
            raise YamlProblem(line, f"more than {MAX_NODES} values in one file")
        if len(path) > MAX_DEPTH:
            raise YamlProblem(line, f"nested more than {MAX_DEPTH} deep")
        if not isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent):
            raise YamlProblem(line, "not YAML: a value was expected")
        if _tagged(event):
            raise YamlProblem(line, "tags (!…) are not accepted")

    def _mapping(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            self._admit(event, path)
            if not isinstance(event, ScalarEvent):
                raise YamlProblem(_line(event), "a field's name must be plain text")
            key = str(event.value)
            if key in found:
                raise YamlProblem(_line(event), f"field {key[:80]!r} is given twice")
            self._lines[(*path, key)] = _line(event)
            found[key] = self._value(next(self._events), (*path, key))
        return found

    def _sequence(self, path: Path) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            found.append(self._value(event, (*path, len(found))))
        return found


def _line(event: Event) -> int:
    mark = getattr(event, "start_mark", None)
    return mark.line + 1 if mark else 1


def _tagged(event: Event) -> bool:
    """An explicit tag; the non-specific ``!`` of a quoted scalar doesn't exist as text."""
    tag = getattr(event, "ctag", None) or getattr(event, "tag", None)
    return tag is not None and str(tag) not in ("", "None")


def _scalar(event: ScalarEvent) -> Any:
    text = str(event.value)
    if event.style is not None:  # quoted or block: text as it stands
        return text
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
