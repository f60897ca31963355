"""``meshagent hub``: the embedded control plane, and who and what is in its mesh."""

import asyncio
from typing import Any

import click

from meshagent.cli import hub_backup, hub_resources, hub_tokens, render
from meshagent.cli.calls import call_hub
from meshagent.cli.context import emit, say, settings, shared_options
from meshagent.model.errors import ExitCode


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
@click.option(
    "--store", metavar="sqlite:PATH", help="The database [default: sqlite:<root>/var/lib/meshagent-hub/hub.db]"
)
@click.option("--http", metavar="HOST:PORT", help="Metrics and health, read-only; or off [default: 127.0.0.1:15080]")
@shared_options
def run(
    listen: str | None,
    advertise: str | None,
    trust_domain: str,
    zone: str,
    root_namespace: str,
    store: str | None,
    http: str | None,
) -> None:
    """The hub, in the foreground. The first start makes its certificate authority."""
    from meshagent.runtime.memory import collect_not_yet, collect_rarely

    collect_not_yet()
    from meshagent.hub.app import HubSettings, run_hub
    from meshagent.observe.log import set_up

    set_up()
    chosen = HubSettings.make(
        settings().paths,
        listen=listen,
        advertise=advertise,
        trust_domain=trust_domain,
        zone=zone,
        root_namespace=root_namespace,
        store=store,
        http=http,
    )
    asyncio.run(run_hub(chosen, loaded=collect_rarely))


@hub.command(epilog="Example: meshagent hub status")
@shared_options
def status() -> int:
    """Whether the hub serves, whom, and what is wrong with it. Exit 4 when something is."""
    answer = call_hub("status")
    if settings().json:
        emit(answer)
    else:
        render.facts(
            [
                ("serving", f"{answer['trust_domain']} at {answer['advertise']}, version {answer['version']}"),
                ("hosts", f"{answer['hosts']}, of which {answer['connected']} connected"),
                ("services", answer["services"]),
                *((c["severity"], f"{c['text']} ({c['code']}, since {c['since']})") for c in answer["conditions"]),
            ]
        )
    wrong = any(c["severity"] == "error" for c in answer["conditions"])
    return int(ExitCode.UNHEALTHY if wrong else ExitCode.OK)


for command in (hub_tokens.token, *hub_resources.COMMANDS, hub_backup.backup, hub_backup.restore):
    hub.add_command(command)


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
            len(h["conditions"]) + len(h["rejections"]) or "",
        )
        for h in answer["hosts"]
    ]
    render.table(("HOST", "IDENTITY", "ADDRESS", "STATE", "POSTURE", "ENVOY", "CONDITIONS"), rows, "no hosts yet")
    for h in answer["hosts"]:
        for line in _troubles(h):
            click.echo(f"{h['name']}: {line}")


def _troubles(host: dict[str, Any]) -> list[str]:
    said = [f"{c['severity']}: {c['text']} ({c['code']})" for c in host["conditions"]]
    return said + [f"refuses {r['kind']} {r['resource']}: {r['reason']}" for r in host["rejections"]]


@hub.group("host", epilog="Example: meshagent hub host revoke web")
@shared_options
def one_host() -> None:
    """One host of the mesh."""


@one_host.command(epilog="Example: meshagent hub host revoke web")
@click.argument("name")
@shared_options
def revoke(name: str) -> None:
    """End a host's enrolment: its streams close, its endpoints go, its certificates are not renewed."""
    say(call_hub("host.revoke", name=name), f"revoked {name}; its name is free")


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


@hub.command(epilog="Example: meshagent hub audit --limit 20")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Newest entries shown.")
@shared_options
def audit(limit: int) -> None:
    """Who enrolled, was refused, renewed, and what operators did; newest first."""
    answer = call_hub("audit", limit=limit)
    if settings().json:
        emit(answer)
        return
    rows = [(a["at"], a["action"], a["outcome"], a["subject"], a["source"], a["detail"]) for a in answer["audit"]]
    render.table(("AT", "ACTION", "OUTCOME", "SUBJECT", "SOURCE", "DETAIL"), rows, "nothing happened yet")


@hub.group(epilog="Example: meshagent hub ca status")
@shared_options
def ca() -> None:
    """The certificate authority of the mesh."""


@ca.command("status", epilog="Example: meshagent hub ca status")
@shared_options
def ca_status() -> None:
    """Trust domain, the hash that tokens pin, validity of the root."""
    answer = call_hub("ca.status")
    if settings().json:
        emit(answer)
        return
    render.facts(
        [
            ("trust domain", answer["trust_domain"]),
            ("pinned hash", answer["ca_hash"]),
            ("serial", answer["serial"]),
            ("valid", f"{answer['not_before']} to {answer['not_after']}"),
        ]
    )
