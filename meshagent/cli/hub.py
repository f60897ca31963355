"""``meshagent hub``: the embedded control plane and its administration."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import click

from meshagent.cli import render
from meshagent.cli.calls import call_hub
from meshagent.cli.context import emit, settings, shared_options
from meshagent.model.errors import ExitCode, UsageError

#: What one request of the admin socket holds, with room for JSON's escapes; 1,000 ordinary resources take 500 KiB.
MAX_RESOURCE_BYTES = 768 * 1024


@click.group(epilog="Example: meshagent hub run --listen 0.0.0.0:15012")
@shared_options
def hub() -> None:
    """The embedded control plane: run it, hand out tokens, look after hosts and resources."""


@hub.command(epilog="Example: meshagent hub run --advertise hub.example:15012")
@click.option("--listen", metavar="HOST:PORT", help="ADS and CA on one TLS port [default: every address, port 15012]")
@click.option("--advertise", metavar="HOST:PORT", help="What join lines say [default: address of the default route]")
@click.option("--trust-domain", default="mesh.internal", show_default=True)
@click.option("--zone", default="mesh.internal", show_default=True, help="Names of services end in this.")
@click.option("--root-namespace", default="istio-system", show_default=True)
@shared_options
def run(listen: str | None, advertise: str | None, trust_domain: str, zone: str, root_namespace: str) -> None:
    """The hub, in the foreground. The first start makes its certificate authority."""
    from meshagent.hub.app import HubSettings, run_hub

    chosen = HubSettings.make(
        settings().paths,
        listen=listen,
        advertise=advertise,
        trust_domain=trust_domain,
        zone=zone,
        root_namespace=root_namespace,
    )
    asyncio.run(run_hub(chosen))


@hub.group(epilog="Example: meshagent hub token create --service-account web")
@shared_options
def token() -> None:
    """Tokens: each enrols one host, once."""


@token.command(epilog="Example: meshagent hub token create --service-account db --namespace shop --ttl 15m")
@click.option("--service-account", required=True, help="Identity of the host that enrols.")
@click.option("--namespace", default="default", show_default=True)
@click.option("--uses", type=click.IntRange(1, 1000), default=1, show_default=True)
@click.option("--ttl", default="1h", show_default=True, help="15m, 1h, 2d")
@click.option("--host", help="Only for a host of this name.")
@click.option("--replace", is_flag=True, help="May take over a host name that is taken.")
@click.option("--cidr", multiple=True, help="Only from these source addresses.")
@click.option("--services", help="What the host may announce, comma-separated.")
@shared_options
def create(**options: Any) -> None:
    """Make a token and print the line that enrols a host with it."""
    options["services"] = [name for name in (options["services"] or "").split(",") if name]
    options["cidr"] = list(options["cidr"])
    answer = call_hub("token.create", **options)
    if settings().json:
        emit(answer)
        return
    click.echo(answer["command"])
    click.echo(f"good until {answer['expires_at']}, {answer['uses']} use(s); id {answer['id']}", err=True)


@token.command("list", epilog="Example: meshagent hub token list")
@shared_options
def list_tokens() -> None:
    """Tokens that were made; never their secrets."""
    answer = call_hub("token.list")
    if settings().json:
        emit(answer)
        return
    rows = [
        (t["id"], f"{t['namespace']}/{t['service_account']}", f"{t['used']}/{t['uses']}", t["expires_at"], t["state"])
        for t in answer["tokens"]
    ]
    render.table(("ID", "IDENTITY", "USED", "EXPIRES", "STATE"), rows, "no tokens")


@token.command(epilog="Example: meshagent hub token revoke 4f2a91c0")
@click.argument("token_id", metavar="ID")
@shared_options
def revoke(token_id: str) -> None:
    """Make a token useless."""
    _say(call_hub("token.revoke", id=token_id), f"revoked token {token_id}")


@hub.command(epilog="Example: meshagent hub apply -f mesh.yaml")
@click.option("-f", "--file", "path", required=True, metavar="PATH|-", help="YAML documents; - reads standard input.")
@shared_options
def apply(path: str) -> None:
    """Store resources (ServiceEntry, WorkloadEntry, PeerAuthentication); all or none."""
    answer = call_hub("resource.apply", name=path, text=read_resources(path))
    if settings().json:
        emit(answer)
        return
    for item in answer["applied"]:
        click.echo(f"{item['kind']} {item['namespace']}/{item['name']} {item['action']}")
    _warn(answer["warnings"])


@hub.command(epilog="Example: meshagent hub validate -f mesh.yaml")
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


@hub.command(epilog="Example: meshagent hub get serviceentry")
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


@hub.command(epilog="Example: meshagent hub delete peerauthentication strict --namespace default")
@click.argument("kind")
@click.argument("name")
@click.option("--namespace", default="default", show_default=True)
@shared_options
def delete(kind: str, name: str, namespace: str) -> None:
    """Remove a stored resource."""
    _say(call_hub("resource.delete", kind=kind, name=name, namespace=namespace), f"deleted {kind} {namespace}/{name}")


@hub.command(epilog="Example: meshagent hub hosts")
@shared_options
def hosts() -> None:
    """Hosts that enrolled, and how they are."""
    answer = call_hub("hosts")
    if settings().json:
        emit(answer)
        return
    rows = [
        (
            h["name"],
            h["spiffe_id"],
            h["address"],
            "connected" if h["connected"] else f"seen {h['last_seen'] or 'never'}",
            h["posture"],
            h["envoy_version"],
            len(h["conditions"]) or "",
        )
        for h in answer["hosts"]
    ]
    render.table(("HOST", "IDENTITY", "ADDRESS", "STATE", "POSTURE", "ENVOY", "CONDITIONS"), rows, "no hosts yet")


@hub.command(epilog="Example: meshagent hub services")
@shared_options
def services() -> None:
    """Services of the mesh, with their addresses and endpoints."""
    answer = call_hub("services")
    if settings().json:
        emit(answer)
        return
    rows = [
        (
            s["host"],
            " ".join(str(p) for p in s["ports"]),
            " ".join(s["addresses"]),
            ", ".join(f"{e['host']}{'' if e['healthy'] else ' (down)'}" for e in s["endpoints"]),
        )
        for s in answer["services"]
    ]
    render.table(("SERVICE", "PORTS", "ADDRESSES", "ENDPOINTS"), rows, "no services yet")


def read_resources(path: str) -> str:
    """The text of a file or of standard input, bounded. Raises ``UsageError``."""
    try:
        data = sys.stdin.buffer.read(MAX_RESOURCE_BYTES + 1) if path == "-" else _read(Path(path))
        text = data.decode("utf-8")
    except OSError as error:
        raise UsageError("no-file", f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError("bad-file", f"{path} is not UTF-8 (byte {error.start})") from None
    if len(data) > MAX_RESOURCE_BYTES:
        raise UsageError("too-large", f"{path} is larger than {MAX_RESOURCE_BYTES} bytes", hint="split it")
    return text


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_RESOURCE_BYTES + 1)


def _warn(warnings: list[str]) -> None:
    for line in warnings:
        click.echo(f"warning: {line}", err=True)


def _say(answer: dict[str, Any], line: str) -> int:
    if settings().json:
        emit(answer)
    else:
        click.echo(line)
    return ExitCode.OK
