"""``meshagent demo``: a whole mesh on this machine, told, checked and removed."""

import os

import click

from meshagent.cli.context import emit, settings, shared_options
from meshagent.model.errors import ExitCode, MeshagentError


@click.command(epilog="Example: meshagent demo --keep")
@click.option("--keep", is_flag=True, help="Leave the mesh running and say how to look around.")
@shared_options
def demo(keep: bool) -> int:
    """A mesh of five hosts in network namespaces with real Envoy, Redis, MariaDB and nginx.

    Tells each step, checks it, cleans up; exits 0 only when every check held. Nothing else on this machine changes.
    """
    if os.geteuid() != 0:
        raise MeshagentError("not-root", "the demo makes network namespaces, which needs root", hint="run it as root")
    from meshagent.demo.story import tell_story

    told = tell_story(quiet=settings().json, keep=keep)
    if settings().json:
        emit(told)
    else:
        total = sum(step["seconds"] for step in told["steps"])
        click.echo(f"\n{'every check held' if told['ok'] else 'a check did not hold'} ({total:.1f} s)")
    return ExitCode.OK if told["ok"] else ExitCode.FAILED
