"""What validation finds: resources ready to keep, and problems that name file, line and field."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from meshagent.model.errors import UsageError

#: A person reads twenty; a program wants to know that there are more.
MAX_PROBLEMS = 200


@dataclass(frozen=True, slots=True)
class SourceText:
    """One file as read: ``name`` as the person knows it (``-`` for standard input)."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """An error or a warning. ``field`` like ``spec.ports[0].number``, empty for the whole document."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}"
        return f"{where}: {self.field}: {self.message}" if self.field else f"{where}: {self.message}"


@dataclass(frozen=True, slots=True)
class Checked:
    """A valid resource. ``spec`` is canonical: defaults left out, Istio's field names."""

    kind: str
    api_version: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Report:
    """All of it at once. ``resources`` are to be used only when ``errors`` is empty."""

    resources: tuple[Checked, ...] = ()
    errors: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()

    def error(self) -> UsageError:
        """All errors as the one that is raised, one line each."""
        lines = "\n".join(str(problem) for problem in self.errors)
        count = f"{len(self.errors)} errors" if len(self.errors) > 1 else "1 error"
        hint = "mend all of them, then try again; nothing was changed"
        return UsageError("invalid-resources", f"{count}:\n{lines}", hint=hint)

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``; ``report_from_json`` reads it back."""
        return asdict(self)


def report_from_json(data: Mapping[str, Any]) -> Report:
    """The inverse of ``Report.as_json``."""
    return Report(
        tuple(Checked(**item) for item in data["resources"]),
        tuple(Problem(**item) for item in data["errors"]),
        tuple(Problem(**item) for item in data["warnings"]),
    )
