"""``meshagent run``: the daemon in the foreground."""

import click

from meshagent.cli import straight
from meshagent.cli.context import settings, shared_options


@click.command(epilog="Example: meshagent run")
@shared_options
def run() -> None:
    """The agent, in the foreground (systemd starts this). Exit 3 when this host is not enrolled."""
    straight.serve(settings().paths)
