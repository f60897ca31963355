"""Commands on one host that ask or tell the daemon one thing: posture, confirm, peers, certs."""

from typing import Any

import click

from meshagent.cli import render
from meshagent.cli.calls import call_agent
from meshagent.cli.context import emit, settings, shared_options
from meshagent.cli.plan import POSTURES, accept_option, make, refuse
from meshagent.cli.status import left
from meshagent.model.errors import UsageError


@click.command(epilog="Example: meshagent posture strict --confirm 60")
@click.argument("wanted", metavar="[POSTURE]", required=False, type=POSTURES)
@click.option("--confirm", "seconds", type=click.IntRange(0, 3600), help="Roll back unless confirmed in time.")
@accept_option
@shared_options
def posture(wanted: str | None, seconds: int | None, accept: tuple[str, ...]) -> None:
    """Show or change how far this host is in the mesh: observe, outbound, permissive or strict."""
    if wanted is None and seconds is not None:
        raise UsageError(
            "usage", "--confirm needs a posture to confirm", hint="example: meshagent posture strict --confirm 60"
        )
    if wanted is None:
        answer = call_agent("posture.get")
    else:
        from meshagent.agent.confirm import default_confirm_seconds

        answer = call_agent("posture.get")  # who can't be told anything needs no plan
        refuse(make(wanted), accept)
        chosen = default_confirm_seconds() if seconds is None else seconds
        answer = call_agent("posture.set", posture=wanted, confirm=chosen, timeout=30)
    if settings().json:
        emit(answer)
        return
    click.echo(f"posture {answer['posture']}")
    if answer["suspended"]:
        click.echo("capture is switched off; it takes effect with: meshagent capture on")
    if answer.get("confirm_until"):
        click.echo(f"rolls back in {left(answer['confirm_until'])} unless you run: meshagent confirm")


@click.command(epilog="Example: meshagent confirm")
@shared_options
def confirm() -> None:
    """Keep the change that is waiting for confirmation."""
    answer = call_agent("confirm")
    if settings().json:
        emit(answer)
    else:
        click.echo("kept" if answer["confirmed"] else "nothing was waiting for confirmation")


@click.command(epilog="Example: meshagent peers -o json")
@shared_options
def peers() -> None:
    """Services of the mesh that this host can reach."""
    answer = call_agent("peers")
    if settings().json:
        emit(answer)
        return
    rows = [
        (
            service["host"],
            " ".join(str(port) for port in service["ports"]),
            " ".join(service["addresses"]),
            _endpoints(service["endpoints"]),
        )
        for service in answer["services"]
    ]
    render.table(("SERVICE", "PORTS", "ADDRESSES", "ENDPOINTS"), rows, "the mesh has no services yet")


def _endpoints(endpoints: list[dict[str, Any]]) -> str:
    healthy = sum(1 for endpoint in endpoints if endpoint["healthy"])
    where = ", ".join(f"{e['host'] or e['address']}{'' if e['healthy'] else ' (down)'}" for e in endpoints[:4])
    return f"{healthy}/{len(endpoints)} healthy: {where}" if endpoints else "none"


@click.group(invoke_without_command=True, epilog="Example: meshagent certs rotate")
@shared_options
@click.pass_context
def certs(context: click.Context) -> None:
    """Certificate chain, SPIFFE ID and validity."""
    if context.invoked_subcommand is None:
        _show_certs(call_agent("certs"))


@certs.command("rotate", epilog="Example: meshagent certs rotate")
@shared_options
def rotate() -> None:
    """Renew the workload certificate now, with a new key."""
    _show_certs(call_agent("certs.rotate", timeout=60))


def _show_certs(answer: dict[str, Any]) -> None:
    if settings().json:
        emit(answer)
        return
    render.facts(
        [
            ("SPIFFE ID", answer["spiffe_id"]),
            ("serial", answer["serial"]),
            ("valid", f"{answer['not_before']} to {answer['not_after']} ({left(answer['not_after'])} left)"),
            ("renewal", answer["renew_at"]),
            ("chain", f"{len(answer['chain'])} certificates, trust bundle of {len(answer['bundle'])}"),
        ]
    )
