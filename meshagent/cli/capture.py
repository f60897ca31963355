"""``meshagent capture``: what the kernel does for us, compared with what it should; switched off and on."""

from typing import Any

import click

from meshagent.cli import render
from meshagent.cli.calls import call_agent
from meshagent.cli.context import emit, settings, shared_options
from meshagent.cli.plan import accept_option, make, refuse
from meshagent.cli.status import left
from meshagent.model.errors import ExitCode, MeshagentError


@click.group(epilog="Example: meshagent capture show")
@shared_options
def capture() -> None:
    """Kernel rules: show, verify, switch off, switch on again."""


@capture.command(epilog="Example: meshagent capture show")
@shared_options
def show() -> None:
    """Our rules with their counters."""
    answer = call_agent("capture.show")
    if settings().json:
        emit(answer)
        return
    for line in answer["captured"]:
        click.echo(f"captured: {line}")
    for each in answer["spared"]:
        click.echo(f"spared: port {each['port']}, {each['reason']}")
    click.echo(answer["ruleset"].rstrip() or "no rules of ours are in the kernel")
    rows = [(c["chain"], c["reason"], c["packets"]) for c in answer["counters"]]
    if rows:
        click.echo()
        render.table(("CHAIN", "RULE", "PACKETS"), rows)


@capture.command(epilog="Example: meshagent capture verify")
@shared_options
def verify() -> int:
    """Compare the kernel with what was applied; exit 4 when they differ."""
    answer = call_agent("capture.verify")
    if settings().json:
        emit(answer)
    else:
        click.echo("as intended" if answer["in_sync"] else "the kernel differs from what was applied:")
        for line in answer["differences"]:
            click.echo(f"  {line}")
    return ExitCode.OK if answer["in_sync"] else ExitCode.UNHEALTHY


@capture.command(epilog="Example: meshagent capture off")
@shared_options
def off() -> None:
    """Capture nothing new until `capture on`, also after restarts. Open connections stay as they are.

    Works where the agent doesn't answer, too.
    """
    answer = _switch_off()
    if settings().json:
        emit(answer)
        return
    click.echo("capture is off" if answer["changed"] else f"capture is off already, since {answer['since']}")
    click.echo("open connections stay as they are; resume with: meshagent capture on")
    if not answer["daemon"]:
        click.echo("the agent doesn't answer; it finds capture switched off when it does")


def _switch_off() -> dict[str, Any]:
    try:
        return call_agent("capture.off", timeout=5)  # whoever is in a hurry waits no longer for an agent that hangs
    except MeshagentError as error:
        if error.code not in ("daemon-down", "no-answer"):
            raise
    from meshagent.agent.suspending import suspend_without_agent

    return suspend_without_agent(settings().paths)


@capture.command(epilog="Example: meshagent capture on --confirm 60")
@click.option("--confirm", "seconds", type=click.IntRange(0, 3600), help="Roll back unless confirmed in time.")
@accept_option
@shared_options
def on(seconds: int | None, accept: tuple[str, ...]) -> None:
    """Capture again what the posture says. In a remote login it waits 120 s for `meshagent confirm` by default."""
    from meshagent.agent.confirm import default_confirm_seconds

    chosen = default_confirm_seconds() if seconds is None else seconds
    call_agent("posture.get", timeout=5)  # an agent that hangs must not capture minutes after this command has failed
    refuse(make(None), accept)
    answer = call_agent("capture.on", confirm=chosen, timeout=30)
    if settings().json:
        emit(answer)
        return
    click.echo("capture is on" if answer["changed"] else "capture was not switched off")
    if answer["confirm_until"]:
        click.echo(f"rolls back in {left(answer['confirm_until'])} unless you run: meshagent confirm")
