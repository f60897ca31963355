"""``meshagent hub apply``, ``get``, ``delete``, ``validate``: what an operator says about the mesh, in Istio's form."""

import sys
from pathlib import Path

import click

from meshagent.cli import render
from meshagent.cli.calls import call_hub
from meshagent.cli.context import emit, say, settings, shared_options
from meshagent.model.errors import UsageError

#: What the hub reads as one text (hub/resources/yamltext.py); 1,000 ordinary resources take half of it.
MAX_RESOURCE_BYTES = 1 << 20
#: A hub validates 1,000 resources in a few seconds; a busy small machine gets ten times that.
APPLY_PATIENCE = 90.0
#: What the hub takes as the name of a text.
_MAX_NAME = 253
_MOST_WARNINGS = 20


@click.command(epilog="Example: meshagent hub apply -f mesh.yaml")
@click.option("-f", "--file", "path", required=True, metavar="PATH|-", help="YAML documents; - reads standard input.")
@shared_options
def apply(path: str) -> None:
    """Store resources (ServiceEntry, WorkloadEntry, PeerAuthentication); all or none."""
    text = read_resources(path)
    answer = call_hub("resource.apply", APPLY_PATIENCE, name=path[-_MAX_NAME:], text=text)
    if settings().json:
        emit(answer)
        return
    for item in answer["applied"]:
        click.echo(f"{item['kind']} {item['namespace']}/{item['name']} {item['action']}")
    _warn(answer["warnings"])


@click.command(epilog="Example: meshagent hub validate -f mesh.yaml")
@click.option("-f", "--file", "path", required=True, metavar="PATH|-")
@shared_options
def validate(path: str) -> None:
    """Check resources without storing them; needs no running hub."""
    from meshagent.hub.resources.load import parse_resources

    parsed = parse_resources(read_resources(path), path)
    if settings().json:
        emit({"valid": True, "resources": len(parsed.resources), "warnings": [str(w) for w in parsed.warnings]})
        return
    click.echo(f"{len(parsed.resources)} resource(s), valid")
    _warn([str(w) for w in parsed.warnings])


@click.command(epilog="Example: meshagent hub get serviceentry")
@click.argument("kind")
@click.argument("name", required=False)
@click.option("--namespace", default="default", show_default=True)
@shared_options
def get(kind: str, name: str | None, namespace: str) -> None:
    """Show stored resources."""
    answer = call_hub("resource.get", kind=kind, name=name or "", namespace=namespace)
    if settings().json:
        emit(answer)
    elif name:
        click.echo(answer["resources"][0]["yaml"].rstrip())
    else:
        render.table(
            ("KIND", "NAMESPACE", "NAME"), [(r["kind"], r["namespace"], r["name"]) for r in answer["resources"]]
        )


@click.command(epilog="Example: meshagent hub delete peerauthentication strict --namespace default")
@click.argument("kind")
@click.argument("name")
@click.option("--namespace", default="default", show_default=True)
@shared_options
def delete(kind: str, name: str, namespace: str) -> None:
    """Remove a stored resource."""
    say(call_hub("resource.delete", kind=kind, name=name, namespace=namespace), f"deleted {kind} {namespace}/{name}")


def read_resources(path: str) -> str:
    """The text of a file or of standard input, bounded. Raises ``UsageError``."""
    try:
        data = sys.stdin.buffer.read(MAX_RESOURCE_BYTES + 1) if path == "-" else _read(Path(path))
        text = data.decode("utf-8")
    except OSError as error:
        raise UsageError(
            "no-file", f"cannot read {path}: {error.strerror}", hint="-f takes a file, or - for standard input"
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError("bad-file", f"{path} is not UTF-8 (byte {error.start})", hint="save it as UTF-8") from None
    if len(data) > MAX_RESOURCE_BYTES:
        raise UsageError("too-large", f"{path} is larger than {MAX_RESOURCE_BYTES} bytes", hint="split it")
    return text


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_RESOURCE_BYTES + 1)


def _warn(warnings: list[str]) -> None:
    for line in warnings[:_MOST_WARNINGS]:
        click.echo(f"warning: {line}", err=True)
    if len(warnings) > _MOST_WARNINGS:
        click.echo(f"warning: … and {len(warnings) - _MOST_WARNINGS} more (all of them: -o json)", err=True)


COMMANDS = (apply, get, delete, validate)
