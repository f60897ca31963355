"""A parsed file as a tree of plain values, each with its line; and the problems found in it.

The tree crosses from the parsing child to the daemon as JSON: ``[line, value]``, where ``value`` is a scalar, a list
of such pairs, or an object of such pairs. An entry of a mapping carries the line of its key.
"""

from dataclasses import dataclass
from typing import Any

from meshagent.model.errors import UsageError

Scalar = None | bool | int | float | str


@dataclass(frozen=True, slots=True)
class Node:
    """One value and the line (from 1) where a person finds it."""

    line: int
    value: "Scalar | tuple[Node, ...] | dict[str, Node]"

    def to_json(self) -> list[Any]:
        """``[line, value]``, recursively."""
        match self.value:
            case tuple():
                return [self.line, [item.to_json() for item in self.value]]
            case dict():
                return [self.line, {key: item.to_json() for key, item in self.value.items()}]
            case _:
                return [self.line, self.value]


def from_json(data: Any) -> Node:
    """The inverse of ``to_json``."""
    line, value = data
    match value:
        case list():
            return Node(line, tuple(from_json(item) for item in value))
        case dict():
            return Node(line, {key: from_json(item) for key, item in value.items()})
        case _:
            return Node(line, value)


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake in a file. ``line`` 0 = the file as a whole; ``path`` is like ``capture.exclude.ports[0]``."""

    file: str
    line: int
    path: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        what = f"{self.path}: {self.text}" if self.path else self.text
        return f"{where}: {what}" + (f" ({self.remedy})" if self.remedy else "")


class ConfigError(UsageError):
    """A file can't be used (exit 2); ``problems`` holds every mistake found, in the order of the file."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(
            "invalid-config",
            "\n".join(str(problem) for problem in problems[:MOST_SHOWN]),
            hint=f"mend line {first.line} of {first.file}{more}" if first.line else f"look at {first.file}",
        )
        self.problems = problems


#: A person mends a screenful at a time; a generated file of a million mistakes must not fill the log.
MOST_SHOWN = 50
