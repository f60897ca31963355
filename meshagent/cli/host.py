"""Commands on one host that ask or tell the daemon one thing: plan, posture, confirm, peers, certs."""

from typing import Any

import click

from meshagent.cli import render
from meshagent.cli.calls import call_agent, enrolled
from meshagent.cli.context import emit, settings, shared_options
from meshagent.cli.status import left
from meshagent.model.errors import UsageError
from meshagent.model.posture import Posture

POSTURES = click.Choice([posture.value for posture in Posture])


@click.command(epilog="Example: meshagent plan --posture strict")
@click.option("--posture", type=POSTURES, help="Plan for this posture instead of the configured one.")
@shared_options
def plan(posture: str | None) -> None:
    """What enrolling, or a posture, would do to this host. Changes nothing; works before enrolment."""
    from meshagent.agent.plan import make_plan

    paths = settings().paths
    live = call_agent("plan.facts") if enrolled(paths) and paths.control_socket.exists() else {}
    planned = make_plan(paths, posture, live)
    if settings().json:
        emit(planned)
        return
    click.echo(f"posture {planned['posture']}\n")
    render.table(("CAPTURED", "WHAT"), [(c["port"], c["reason"]) for c in planned["captured"]], "no port is captured")
    click.echo()
    render.table(("SPARED", "WHY"), [(s["port"], s["reason"]) for s in planned["spared"]], "nothing is spared")
    if planned["connections"]:
        click.echo()
        rows = [(c["local"], c["remote"], c["process"], c["effect"]) for c in planned["connections"]]
        render.table(("OPEN CONNECTION", "PEER", "PROCESS", "EFFECT"), rows)
    for title, lines in (("would change", planned["changes"]), ("mind", planned["warnings"])):
        if lines:
            click.echo(f"\n{title}:")
            for line in lines:
                click.echo(f"  - {line}")
    click.echo(f"\nkernel rules:\n{planned['rules'] or '  none'}")


@click.command(epilog="Example: meshagent posture strict --confirm 60")
@click.argument("wanted", metavar="[POSTURE]", required=False, type=POSTURES)
@click.option("--confirm", "seconds", type=click.IntRange(0, 3600), help="Roll back unless confirmed in time.")
@shared_options
def posture(wanted: str | None, seconds: int | None) -> None:
    """Show or change how far this host is in the mesh: observe, outbound, permissive or strict."""
    if wanted is None and seconds is not None:
        raise UsageError(
            "usage", "--confirm needs a posture to confirm", hint="example: meshagent posture strict --confirm 60"
        )
    if wanted is None:
        answer = call_agent("posture.get")
    else:
        from meshagent.agent.confirm import default_confirm_seconds

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
