"""``meshagent capture``: what the kernel does for us, compared with what it should."""

import click

from meshagent.cli import render
from meshagent.cli.calls import call_agent
from meshagent.cli.context import emit, settings, shared_options
from meshagent.model.errors import ExitCode


@click.group(epilog="Example: meshagent capture show")
@shared_options
def capture() -> None:
    """Kernel rules: show, verify."""


@capture.command(epilog="Example: meshagent capture show")
@shared_options
def show() -> None:
    """Our rules with their counters."""
    answer = call_agent("capture.show")
    if settings().json:
        emit(answer)
        return
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
