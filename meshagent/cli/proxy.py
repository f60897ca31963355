"""``meshagent proxy``: the local Envoy. Its configuration, clusters and log level are asked of it directly, so that
these also work while the agent is away."""

import asyncio
from typing import Any

import click

from meshagent.cli import render
from meshagent.cli.calls import call_agent
from meshagent.cli.context import emit, progress, settings, shared_options
from meshagent.cli.straight import enrolled
from meshagent.model.errors import ExitCode, NotEnrolledError

#: The next epoch may take 30 s until it serves; it takes 0.1.
RESTART_SECONDS = 45.0

SECTIONS = ("bootstrap", "clusters", "endpoints", "listeners", "routes", "secrets")


@click.group(epilog="Example: meshagent proxy show")
@shared_options
def proxy() -> None:
    """The local Envoy: show, config, clusters, log-level, restart."""


@proxy.command(epilog="Example: meshagent proxy show")
@shared_options
def show() -> int:
    """Process, epoch, memory, connections; what an older epoch still serves. Exit 4 when it isn't ready."""
    answer = call_agent("proxy.show")
    emit(answer) if settings().json else render.facts(list(_facts(answer)))
    return ExitCode.OK if answer["ready"] else ExitCode.UNHEALTHY


def _facts(answer: dict[str, Any]) -> list[tuple[str, object]]:
    state = "ready" if answer["ready"] else "not ready" if answer["pid"] else "not running"
    rows: list[tuple[str, object]] = [
        ("Envoy", f"{answer['version'] or '-'}, {state}" + (", keeps crashing" if answer["crash_loop"] else "")),
        ("process", f"pid {answer['pid'] or '-'}, epoch {answer['epoch']}, since {answer['since'] or '-'}"),
        ("restarts", answer["restarts"]),
    ]
    if answer["connections"] is not None:
        rows.append(("connections", answer["connections"]))
        megabytes = (answer["memory_allocated"] or 0) / 1e6, (answer["memory_reserved"] or 0) / 1e6
        rows.append(("memory", f"{megabytes[0]:.0f} MB in use, {megabytes[1]:.0f} MB reserved"))
    if parent := answer["parent"]:
        count = "its" if parent["connections"] is None else parent["connections"]
        who = f"{parent['epoch']} (pid {parent['pid']}, {parent['version']})"
        rows.append(("older epoch", f"{who} lives on for {count} connections"))
    if answer["upgrade"]:
        rows.append(("installed", f"Envoy {answer['upgrade']}; meshagent proxy restart takes it in"))
    return rows


@proxy.command("config", epilog="Example: meshagent proxy config --section listeners")
@click.option("--section", type=click.Choice(SECTIONS), help="Only this part.")
@shared_options
def config(section: str | None) -> None:
    """What Envoy runs with, as JSON; secrets are masked."""
    import json

    from meshagent.agent.envoy import inspect

    answer = asyncio.run(inspect.config(inspect.living(_paths()), section or ""))
    if settings().json:
        emit(answer)
    else:
        click.echo(json.dumps(answer, indent=1, ensure_ascii=False))


@proxy.command(epilog="Example: meshagent proxy clusters")
@shared_options
def clusters() -> None:
    """Where Envoy sends connections: endpoints, their health as Envoy sees it, counts."""
    from meshagent.agent.envoy import inspect

    answer = asyncio.run(inspect.clusters(inspect.living(_paths())))
    if settings().json:
        emit(answer)
        return
    headers = ("CLUSTER", "ENDPOINT", "HEALTHY", "PRIORITY", "OPEN", "TOTAL", "FAILED")
    rows = [_row(cluster["name"], each) for cluster in answer["clusters"] for each in cluster["endpoints"]]
    render.table(headers, rows)


def _row(name: str, endpoint: dict[str, Any]) -> tuple[object, ...]:
    place = f"{endpoint['address']} port {endpoint['port']}" if endpoint["port"] else endpoint["address"]
    well = "yes" if endpoint["healthy"] else "no"
    return name, place, well, endpoint["priority"], endpoint["active"], endpoint["total"], endpoint["failed"]


@proxy.command("log-level", epilog="Example: meshagent proxy log-level warning")
@click.argument("level", required=False)
@shared_options
def log_level(level: str | None) -> None:
    """Show or set how much Envoy writes to its log, until it is restarted."""
    from meshagent.agent.envoy import inspect

    paths = _paths()
    answer = asyncio.run(inspect.log_level(inspect.living(paths), level or ""))
    if settings().json:
        emit(answer)
        return
    levels = sorted(set(answer["loggers"].values()))
    if len(levels) == 1:
        click.echo(f"{levels[0]} (all {len(answer['loggers'])} loggers); written to {inspect.log_of(paths)}")
    else:
        render.table(("LOGGER", "LEVEL"), list(answer["loggers"].items()))


@proxy.command(epilog="Example: meshagent proxy restart")
@shared_options
def restart() -> None:
    """A new Envoy beside the living one; open connections stay with the old one until they end.

    Takes in a new binary and changed proxy settings. Refused while an older one still serves connections.
    """
    progress("starting the next epoch")
    answer = call_agent("proxy.restart", timeout=RESTART_SECONDS)
    if settings().json:
        emit(answer)
        return
    click.echo(f"Envoy {answer['version']} serves (pid {answer['pid']}, epoch {answer['epoch']})")
    if parent := answer["parent"]:
        click.echo(f"epoch {parent['epoch']} (pid {parent['pid']}) lives on until its connections end, at most a day")


def _paths() -> Any:
    paths = settings().paths
    if not enrolled(paths):
        raise NotEnrolledError(str(paths.root))
    return paths
