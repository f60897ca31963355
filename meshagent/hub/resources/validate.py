"""Files in, one report out: every error and every warning at once, each with file, line and field. Pure."""

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from meshagent.hub.resources import warnings
from meshagent.hub.resources.checked import MAX_PROBLEMS, Checked, Problem, Report, SourceText
from meshagent.hub.resources.schema import KINDS, UNSUPPORTED
from meshagent.hub.resources.yamltext import Document, Path, YamlProblem, read_documents


def validate(
    sources: Iterable[SourceText], *, namespace: str = "default", root_namespace: str = "istio-system"
) -> Report:
    """Check all ``sources``; ``namespace`` is for resources that name none."""
    resources: list[Checked] = []
    errors: list[Problem] = []
    found_warnings: list[Problem] = []
    seen: dict[tuple[str, str, str], Checked] = {}
    for source in sources:
        try:
            for document in read_documents(source.text):
                for item in _items(document):
                    outcome = _check(source.name, item, namespace)
                    if isinstance(outcome, Checked):
                        errors.extend(_twice(outcome, seen))
                        found_warnings.extend(warnings.of(outcome, item, root_namespace))
                        resources.append(outcome)
                    else:
                        errors.extend(outcome)
        except YamlProblem as problem:
            errors.append(Problem(source.name, problem.line, "", problem.message))
    return Report(tuple(resources), _some(errors), _some(found_warnings))


def _items(document: Document) -> Iterator[Document]:
    """The document itself, or each item of a ``kind: List`` (as ``kubectl get -o yaml`` writes)."""
    value = document.value
    if not (isinstance(value, dict) and value.get("kind") == "List" and isinstance(value.get("items"), list)):
        yield document
        return
    for number, item in enumerate(value["items"]):
        start = ("items", number)
        lines = {path[2:]: line for path, line in document.lines.items() if path[:2] == start}
        yield Document(item, document.line_of(start), lines)


def _check(file: str, document: Document, namespace: str) -> Checked | list[Problem]:
    value = document.value
    if not isinstance(value, dict):
        return [Problem(file, document.line, "", "a resource is a mapping with apiVersion, kind, metadata and spec")]
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        text = f"must be one of {', '.join(KINDS)}" + (f", not {str(kind)[:80]!r}" if kind else "")
        return [Problem(file, document.line_of(("kind",)), "kind", text)]
    model, versions = KINDS[kind]
    if value.get("apiVersion") not in versions:
        text = f"must be {versions[0]} for {kind} ({', '.join(versions[1:])} are accepted too)"
        return [Problem(file, document.line_of(("apiVersion",)), "apiVersion", text)]
    try:
        resource: Any = model.model_validate(value)
    except ValidationError as error:
        return [_problem(file, document, detail) for detail in error.errors(include_url=False, include_input=False)]
    return Checked(
        kind=kind,
        api_version=resource.api_version,
        namespace=resource.metadata.namespace or namespace,
        name=resource.metadata.name,
        labels=resource.metadata.labels,
        spec=resource.spec.model_dump(by_alias=True, exclude_defaults=True),
        file=file,
        line=document.line,
    )


def _problem(file: str, document: Document, detail: Any) -> Problem:
    path: Path = tuple(part for part in detail["loc"] if part != "[key]")
    return Problem(file, document.line_of(path), field_text(path), _text(detail, path))


def _text(detail: Any, path: Path) -> str:
    kind, last = detail["type"], str(path[-1]) if path else ""
    if kind == "extra_forbidden":
        return UNSUPPORTED.get(last, "unknown field")
    if kind == "missing":
        return "is missing"
    if kind == "string_type":
        return "must be text: put it in quotes"
    if kind == "literal_error" and last == "mode":
        return "must be STRICT, PERMISSIVE or UNSET (DISABLE is not supported)"
    message: str = detail["msg"]
    return message.removeprefix("Value error, ").replace("Input should be", "must be")


def field_text(path: Path) -> str:
    """``spec.ports[0].number``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part[:80]}"
    return text.removeprefix(".")


def _twice(resource: Checked, seen: dict[tuple[str, str, str], Checked]) -> Iterator[Problem]:
    key = (resource.kind, resource.namespace, resource.name)
    first = seen.setdefault(key, resource)
    if first is not resource:
        what = f"{resource.kind} {resource.name} is given already in {first.file}:{first.line}"
        yield Problem(resource.file, resource.line, "metadata.name", what)


def _some(problems: list[Problem]) -> tuple[Problem, ...]:
    if len(problems) <= MAX_PROBLEMS:
        return tuple(problems)
    rest = Problem(
        problems[MAX_PROBLEMS].file, problems[MAX_PROBLEMS].line, "", f"… {len(problems) - MAX_PROBLEMS} more"
    )
    return (*problems[:MAX_PROBLEMS], rest)
