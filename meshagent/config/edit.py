"""Changes to the operator's own files: only the bytes that must change, everything else stays as it was typed.

A value is replaced where it stands, a document is cut out where it stands; the result is parsed and checked before it
takes the old file's place in one step, so a file that was valid never becomes invalid by our hand.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meshagent.config.load import check_agent_config, read_agent_config
from meshagent.config.read import read_here, read_tree, service_files
from meshagent.config.services import check_service
from meshagent.config.settings import AgentConfig
from meshagent.config.tree import ConfigError, Node, Problem
from meshagent.machine.files import make_dir, remove_file, write_atomic
from meshagent.model.errors import MeshagentError, UsageError
from meshagent.model.paths import Paths
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService, ServiceProtocol

_MODE = 0o644


def set_posture(path: Path, posture: Posture) -> AgentConfig:
    """Write ``posture`` to ``agent.yaml`` (made if missing) and return the settings. Raises ``ConfigError`` when the
    file is invalid as it is: a broken file isn't built upon.
    """
    config = read_agent_config(path)
    text = _text(path) if path.exists() else ""
    if config.posture is posture and (text or posture is Posture.PERMISSIVE):
        return config
    changed = _with_value(text, "posture", posture.value)
    config = _checked_config(path, changed)
    if config.posture is not posture:
        raise ConfigError((Problem(str(path), 0, "posture", "could not be changed", "set it with an editor"),))
    make_dir(path.parent)
    write_atomic(path, changed, mode=_mode(path))
    return config


def _checked_config(path: Path, text: str) -> AgentConfig:
    from meshagent.config.yamltext import parse_yaml

    return check_agent_config(str(path), parse_yaml(text.encode(), str(path)))


def _with_value(text: str, key: str, value: str) -> str:
    """``text`` with the top-level ``key`` set to ``value``, which needs no quotes."""
    entries = _top_level(text)
    for name, node in entries:
        if name.value == key:
            start, end = node.start_mark.index, node.end_mark.index
            if start == end:  # nothing stands there: YAML places it somewhere behind the colon
                start = end = text.index(":", name.end_mark.index) + 1
                value = f" {value}"
            return text[:start] + value + text[end:]
    line = f"{key}: {value}" + ("\r\n" if "\r\n" in text else "\n")
    if not entries:
        return text + ("" if not text or text.endswith("\n") else "\n") + line
    first = entries[0][0].start_mark
    if first.column != 0 or text[first.index - first.column :].startswith("{"):
        raise UsageError(
            "config-not-editable", "agent.yaml is written on one line", hint=f"add {key}: {value} with an editor"
        )
    return text[: first.index] + line + text[first.index :]


def _top_level(text: str) -> Sequence[tuple[Any, Any]]:
    from ruamel.yaml import YAML

    root: Any = YAML(typ="safe", pure=True).compose(text)
    return list(root.value) if root is not None and isinstance(root.value, list) else []


def add_service(
    paths: Paths,
    name: str,
    *,
    port: int,
    target_port: int | None = None,
    protocol: str = "tcp",
    check: str | None = None,
) -> Path:
    """``write_service`` of what a person typed; ``check`` is ``tcp`` or ``http:/path``. Raises ``ConfigError``."""
    typed: dict[str, Node] = {"name": Node(0, name), "port": Node(0, port), "protocol": Node(0, protocol)}
    if target_port is not None:
        typed["target_port"] = Node(0, target_port)
    if check is not None:
        kind, _, rest = check.partition(":")
        typed["check"] = Node(0, {kind: Node(0, rest or (True if kind == "tcp" else "/"))})
    return write_service(paths.services_dir, check_service(f"service {ascii(name)[1:60]}", Node(0, typed)))


def write_service(directory: Path, service: DeclaredService) -> Path:
    """Declare ``service`` in a file of its own; returns the file. Raises ``UsageError`` when the name is taken or the
    service is not one that could be read back.
    """
    taken = _find(directory, service.name)
    if taken:
        hint = f"edit that file, or first: meshagent service remove {service.name}"
        raise UsageError("service-exists", f"{service.name} is already declared in {taken[0]}", hint=hint)
    path = directory / f"{service.name}.yaml"
    if path.exists():
        raise UsageError("file-exists", f"{path} exists and declares something else", hint="move it out of the way")
    text = render_service(service)
    _check_service(path, text, service)
    make_dir(directory)
    write_atomic(path, text, mode=_MODE)
    return path


def _check_service(path: Path, text: str, service: DeclaredService) -> None:
    from meshagent.config.yamltext import parse_yaml

    (node,) = parse_yaml(text.encode(), str(path))
    if check_service(str(path), node) != service:
        raise MeshagentError("service-not-written", f"{service.name} would not read back as it is")


def remove_service(paths: Paths, name: str) -> Path:
    """Take ``name`` out of ``services.d``, with its file if nothing else is in it; returns the file. Raises
    ``UsageError`` when no file declares it.
    """
    directory = paths.services_dir
    found = _find(directory, name)
    if not found:
        declared = ", ".join(sorted(_names(directory))) or "none"
        hint = f"declared here: {declared}"
        raise UsageError("no-such-service", f"no service {ascii(name)[1:-1]} is declared in {directory}", hint=hint)
    path, index, count = found
    if count == 1:
        remove_file(path)
    else:
        write_atomic(path, _without_document(_text(path), index), mode=_mode(path))
    return path


def _find(directory: Path, name: str) -> tuple[Path, int, int] | None:
    """The file that declares ``name``, which of its documents, and how many it has."""
    for path in service_files(directory):
        try:
            trees = read_tree(path) or ()
        except ConfigError:
            continue  # a broken file can't be searched; it is named by `service list` and the daemon
        for index, tree in enumerate(trees):
            if _name(tree) == name:
                return path, index, len(trees)
    return None


def _names(directory: Path) -> set[str]:
    trees = [tree for file in read_here(service_files(directory)).values() for tree in file]
    return {name for tree in trees if isinstance(tree, Node) and (name := _name(tree))}


def _name(tree: Node) -> str:
    name = tree.value.get("name") if isinstance(tree.value, dict) else None
    return name.value if name and isinstance(name.value, str) else ""


def _without_document(text: str, index: int) -> str:
    """``text`` without its ``index``-th document that holds something, cut at the lines of its start and its end."""
    from ruamel.yaml import YAML
    from ruamel.yaml.events import DocumentEndEvent, DocumentStartEvent, ScalarEvent

    starts: list[int] = []
    holds: list[bool] = []
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, DocumentStartEvent):
            starts.append(event.start_mark.line)
            holds.append(False)
        elif starts and not isinstance(event, DocumentEndEvent):
            holds[-1] = holds[-1] or not (isinstance(event, ScalarEvent) and not event.value)
    lines = text.splitlines(keepends=True)
    number = [place for place, full in enumerate(holds) if full][index]
    begin = starts[number] if number else 0
    end = starts[number + 1] if number + 1 < len(starts) else len(lines)
    return "".join(lines[:begin] + lines[end:])


def render_service(service: DeclaredService) -> str:
    """The file of one service: what differs from the defaults, in the order of the documentation."""
    plain = DeclaredService(service.name, service.port, service.port)
    lines = [f"name: {service.name}", f"port: {service.port}"]
    if service.target_port != service.port:
        lines.append(f"target_port: {service.target_port}")
    if service.protocol is not ServiceProtocol.TCP:
        lines.append(f"protocol: {service.protocol}")
    if service.labels:
        lines += ["labels:", *(f"  {key}: {_quoted(value)}" for key, value in service.labels)]
    if service.check != plain.check:
        lines.append(f"check: {{{', '.join(_check_words(service))}}}")
    lines += [
        f"{key}: {value}"
        for key, value, usual in (
            ("weight", service.weight, plain.weight),
            ("priority", service.priority, plain.priority),
            ("site", _quoted(service.site), _quoted("")),
        )
        if value != usual
    ]
    return "\n".join(lines) + "\n"


def _check_words(service: DeclaredService) -> list[str]:
    check = service.check
    kind = f"http: {_quoted(check.path)}" if check.kind == "http" else "tcp: true"
    times = [f"interval: {check.interval:g}s", f"timeout: {check.timeout:g}s"]
    return [kind, *times, f"healthy: {check.healthy}", f"unhealthy: {check.unhealthy}"]


def _quoted(text: str) -> str:
    """A YAML double-quoted scalar; JSON's is one (YAML 1.2.2 section 1.3)."""
    import json

    return json.dumps(text)


def _text(path: Path) -> str:
    """The file's text with its line ends as they are."""
    return path.read_bytes().decode("utf-8").removeprefix("\ufeff")


def _mode(path: Path) -> int:
    """The mode an operator gave the file stays."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return _MODE
