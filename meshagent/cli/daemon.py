"""``meshagent run``: the daemon in the foreground."""

import click

from meshagent.cli.calls import enrolled
from meshagent.cli.context import settings, shared_options
from meshagent.model.errors import NotEnrolledError


@click.command(epilog="Example: meshagent run")
@shared_options
def run() -> None:
    """The agent, in the foreground (systemd starts this). Exit 3 when this host is not enrolled."""
    paths = settings().paths
    if not enrolled(paths):
        raise NotEnrolledError(str(paths.root))
    from meshagent.runtime.memory import stay_lean

    stay_lean()
    import asyncio

    from meshagent.agent.start import run_agent

    asyncio.run(run_agent(paths))
