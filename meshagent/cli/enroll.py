"""``meshagent enroll`` and ``meshagent leave``: into the mesh and out of it again."""

import asyncio
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from meshagent.cli import render
from meshagent.cli.calls import call_agent, start_hint
from meshagent.cli.context import emit, progress, settings, shared_options
from meshagent.cli.plan import POSTURES, accept_option, make, refuse
from meshagent.cli.status import duration, left
from meshagent.cli.straight import enrolled
from meshagent.machine.users import require_root
from meshagent.model.errors import MeshagentError, UsageError
from meshagent.model.ports import CONTROL_PLANE

MAX_TOKEN = 4096
#: For people; programs get all of them.
_MOST_NAMES = 5


@click.command(epilog="Example: meshagent enroll hub.example:15012 file:/root/token --confirm 120")
@click.argument("hub", metavar="HUB")
@click.argument("token", metavar="[TOKEN]", required=False)
@click.option("--name", help="Host name in the mesh (default: this host's short name).")
@click.option("--posture", type=POSTURES, help="How far to go at once (default: permissive).")
@click.option("--confirm", "seconds", type=click.IntRange(0, 3600), help="Roll capture back unless confirmed in time.")
@click.option("--no-start", is_flag=True, help="Enrol only; don't start the agent.")
@accept_option
@shared_options
def enroll(
    hub: str,
    token: str | None,
    name: str | None,
    posture: str | None,
    seconds: int | None,
    no_start: bool,
    accept: tuple[str, ...],
) -> None:
    """Join the mesh of HUB (host:port, default port 15012) with a single-use TOKEN.

    TOKEN is the token itself, '-' (standard input), file:PATH, or left out with MESHAGENT_TOKEN set.
    """
    from meshagent.agent.confirm import default_confirm_seconds
    from meshagent.agent.enroll import Wish, enroll_host
    from meshagent.agent.welcome import welcome
    from meshagent.model.address import parse_host_port

    wish = Wish(
        hub=parse_host_port(hub, CONTROL_PLANE),
        token=read_token(token),
        name=name or "",
        posture=posture or "",
        confirm=default_confirm_seconds() if seconds is None else seconds,
        start=not no_start,
    )
    paths = settings().paths
    if not enrolled(paths):
        refuse(make(posture, [wish.hub]), accept)
    joined = asyncio.run(enroll_host(paths, wish, progress))
    answer = welcome(paths, joined, start=wish.start, confirm=wish.confirm, progress=progress)
    if settings().json:
        emit(answer)
        return
    _summary(answer, start_hint(paths))


def read_token(given: str | None) -> str:
    """The token text from where it was said to be; never echoed. Raises ``UsageError`` when there is none."""
    if given == "-" or (given and given.startswith("file:")):
        text = _read_token(given.removeprefix("file:"))
    else:
        text = given or os.environ.get("MESHAGENT_TOKEN", "")
    if not text.strip():
        raise UsageError(
            "no-token", "no token given", hint="make one on the hub: meshagent hub token create --service-account NAME"
        )
    return text.strip()


def _read_token(where: str) -> str:
    """Bounded; ``-`` is standard input. Bytes that no token holds make it a bad token, not an error of reading."""
    try:
        with open(0, "rb", closefd=False) if where == "-" else Path(where).open("rb") as file:
            return file.read(MAX_TOKEN).decode("ascii", errors="replace")
    except OSError as error:
        hint = "give file:PATH, - for standard input, or the token"
        raise UsageError("no-token", f"cannot read the token from {where}: {error.strerror}", hint=hint) from None


def _summary(answer: dict[str, Any], start: str) -> None:
    spared = ", ".join(f"{s['port']} ({s['reason']})" for s in answer["spared"]) or "nothing had to be"
    rows = [
        ("host", answer["host"]),
        ("identity", f"{answer['spiffe_id']}, good for {left(answer['not_after'])}"),
        ("posture", answer["posture"]),
        ("captured", ", ".join(str(p) for p in answer["captured"]) or "no port yet"),
        ("spared", spared),
        ("undo", answer["undo"]),
        ("emergency", answer["emergency"]),
    ]
    if answer["confirm_until"]:
        rows.append(("roll-back", f"in {left(answer['confirm_until'])} unless you run: meshagent confirm"))
    if not answer["started"]:
        rows.append(("next", start))
    render.facts(rows)


@click.command(epilog="Example: meshagent leave --drain 60")
@click.option(
    "--drain",
    type=click.IntRange(0, 3600),
    default=30,
    show_default=True,
    help="Seconds for connections through Envoy to finish.",
)
@click.option("--wait", is_flag=True, help="Wait until the last connection through Envoy ends by itself.")
@click.option("--purge", is_flag=True, help="Also remove /etc/meshagent (agent.yaml, services.d).")
@accept_option
@shared_options
def leave(drain: int, wait: bool, purge: bool, accept: tuple[str, ...]) -> None:
    """Take this host out of the mesh and give it back as it was.

    Refused (exit 5) while programs here use what only the mesh reaches, unless --accept mesh-in-use.
    """
    from meshagent.agent.leave import leave_mesh

    require_root("leaving")
    users, asked = _users(accept) if enrolled(settings().paths) else ((), [])
    answer = asyncio.run(leave_mesh(settings().paths, drain=None if wait else drain, purge=purge, progress=progress))
    answer["warnings"] += [f"has nowhere to go now: {line}" for line in users]
    answer["asked"] = asked
    if settings().json:
        emit(answer)
        return
    if not answer["was_enrolled"]:
        click.echo("this host is not in a mesh; nothing to do")
        return
    click.echo(f"left the mesh in {answer['seconds']:g} s; removed: {', '.join(answer['removed']) or 'nothing'}")
    if answer["drain"] and answer["drain"]["connections"]:
        click.echo(_drained(answer["drain"], cut=bool(answer["closed"])))
    for line in answer["closed"]:
        click.echo(f"closed after the drain: {line}")
    for line in answer["warnings"]:
        click.echo(f"warning: {line}", err=True)
    if asked:
        click.echo(f"asked for lately by programs here, and unknown from now on: {_asked(asked)}", err=True)


def _asked(names: list[dict[str, Any]]) -> str:
    """The most asked ones."""
    shown = [f"{n['name']} ({n['times']} times, {duration(n['seconds_ago'])} ago)" for n in names[:_MOST_NAMES]]
    return ", ".join(shown) + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")


def _drained(drain: dict[str, Any], *, cut: bool) -> str:
    """What became of the connections that were in use."""
    ended = "they did not all end by themselves" if cut else "all ended by themselves"
    return f"drained for {drain['seconds']:g} s: connections in use: {drain['connections']}, {ended}"


def _users(accept: Collection[str]) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """(who uses the mesh here, a line each; names asked for lately). Raises ``RefusedError`` unless accepted."""
    from meshagent.agent.judge.risks import require_accepted
    from meshagent.agent.using import mesh_users, names_asked

    facts = _ask("plan.facts")
    lines, risks = mesh_users(facts, _ask("peers") if facts else {})  # who hangs is asked once
    asked = names_asked(facts)
    if asked:
        progress(f"names of the mesh asked for lately: {_asked(asked)}")
    require_accepted(risks, accept)
    return lines, asked


def _ask(method: str) -> dict[str, Any]:
    """What the daemon says; nothing where it doesn't answer: leaving must work without it."""
    try:
        return call_agent(method, timeout=5)
    except MeshagentError:
        return {}
