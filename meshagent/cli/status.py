"""``meshagent status``: one screen."""

import json
import signal
import threading
import time
from datetime import UTC, datetime
from typing import Any

import click

from meshagent.cli import render
from meshagent.cli.calls import call_agent
from meshagent.cli.context import emit, settings, shared_options
from meshagent.model.errors import ExitCode, MeshagentError, NotEnrolledError


@click.command(epilog="Example: meshagent status --watch")
@click.option("--watch", is_flag=True, help="Print again whenever something changed, until interrupted.")
@shared_options
def status(watch: bool) -> int:
    """Identity, control plane, capture, proxy, services and what is wrong, on one screen.

    Exit code 0 healthy, 3 not enrolled, 4 enrolled but something is wrong.
    """
    asked = _ends_by_interrupt() if watch else threading.Event()
    last = ""
    while not asked.is_set():
        answer = _ask()
        text = json.dumps(_lasting(answer), sort_keys=True)
        if text != last:
            emit(answer) if settings().json else _draw(answer)
            last = text
        if not watch:
            return _exit_code(answer)
        time.sleep(1)
    raise KeyboardInterrupt


def _ends_by_interrupt() -> threading.Event:
    """Set by Ctrl-C, which also raises ``KeyboardInterrupt`` as always.

    Python drops an exception that arises in a callback of its own (of a weak reference, while modules load): the
    event is what such an interrupt leaves behind.
    """
    asked = threading.Event()

    def interrupted(_number: int, _frame: object) -> None:
        asked.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
    return asked


def _ask() -> dict[str, Any]:
    try:
        return call_agent("status")
    except NotEnrolledError:
        if settings().json:
            return {"enrolled": False}
        raise


def _lasting(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer without what only says that time went by."""
    if not answer["enrolled"]:
        return answer
    plane = {key: value for key, value in answer["control_plane"].items() if key != "config_age"}
    callers = [{**caller, "last_seen": None} for caller in answer["plaintext_callers"]]  # whoever called has a count
    return {**answer, "control_plane": plane, "plaintext_callers": callers}


def _exit_code(answer: dict[str, Any]) -> int:
    if not answer["enrolled"]:
        return ExitCode.NOT_ENROLLED
    wrong = any(condition["severity"] == "error" for condition in answer["conditions"])
    return ExitCode.UNHEALTHY if wrong else ExitCode.OK


def _draw(answer: dict[str, Any]) -> None:
    if not answer["enrolled"]:
        raise NotEnrolledError
    identity, plane, capture, proxy = (answer[key] for key in ("identity", "control_plane", "capture", "proxy"))
    render.facts(
        [
            ("host", f"{answer['host']}  posture {answer['posture']}"),
            ("identity", f"{identity['spiffe_id']}  good for {left(identity['not_after'])}"),
            ("control plane", f"{plane['kind']} {plane['address']}  {_connected(plane)}"),
            ("capture", _capture_line(capture)),
            *(("redirected", f"port {r['port']}: {r['text']}") for r in capture["redirected"]),
            ("spared", ", ".join(f"{s['port']} ({s['reason']})" for s in capture["spared"]) or "nothing"),
            ("proxy", f"{_proxy_line(proxy)}"),
        ]
    )
    if answer["services"]:
        rows = [
            (s["host"] or s["name"], s["port"], s["protocol"], "healthy" if s["healthy"] else s["reason"] or "unknown")
            for s in answer["services"]
        ]
        click.echo()
        render.table(("SERVICE", "PORT", "PROTOCOL", "HEALTH"), rows)
    if answer["plaintext_callers"]:
        callers = [(c["service"], c["address"], c["count"], c["last_seen"] or "-") for c in answer["plaintext_callers"]]
        click.echo()
        render.table(("PLAIN-TEXT CALLERS OF", "FROM", "CONNECTIONS", "LAST SEEN"), callers)
    for condition in answer["conditions"]:
        colour = "red" if condition["severity"] == "error" else "yellow"
        click.echo()
        click.echo(click.style(f"{condition['severity']}: {condition['title']} ({condition['code']})", fg=colour))
        click.echo(f"  {condition['text']}")


def _connected(plane: dict[str, Any]) -> str:
    if plane["connected"]:
        return f"connected since {plane['since']}"
    return f"away since {plane['since']}, last heard {duration(int(plane['config_age']))} ago"


def _capture_line(capture: dict[str, Any]) -> str:
    if capture["suspended_since"]:
        return f"switched off since {capture['suspended_since']}; resume with: meshagent capture on"
    if not capture["active"]:
        return "off"
    line = f"on ({capture['backend']}), " + ("as intended" if capture["in_sync"] else "NOT as intended")
    if capture["ports"]:
        line += ", declared ports " + " ".join(str(port) for port in capture["ports"])
    if capture["pending_confirm_until"]:
        line += f", rolls back in {left(capture['pending_confirm_until'])} unless: meshagent confirm"
    if last := capture["restored"]:
        line += f", restored at {last['at']} after {last['name']} (pid {last['pid']}): {last['what']}"
    return line


def _proxy_line(proxy: dict[str, Any]) -> str:
    if not proxy["pid"]:
        return "not running"
    ready = "ready" if proxy["ready"] else "starting"
    line = (
        f"Envoy {proxy['version']}, {ready}, pid {proxy['pid']}, epoch {proxy['epoch']}, {proxy['restarts']} restarts"
    )
    return f"{line}, hung {proxy['hangs']} times" if proxy.get("hangs") else line


def left(rfc3339: str) -> str:
    """``6 d 23 h``: time from now to an RFC 3339 time, two units; raises ``MeshagentError`` for no time at all."""
    try:
        seconds = int((datetime.fromisoformat(rfc3339) - datetime.now(UTC)).total_seconds())
    except ValueError:
        raise MeshagentError("bad-time", f"{rfc3339!r} is not a time") from None
    return duration(seconds) if seconds > 0 else "0 s (past)"


def duration(seconds: int) -> str:
    """``6 d 23 h``: two units."""
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    parts: list[str] = []
    for size, name in units:
        count, seconds = divmod(seconds, size)
        if count or parts:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"
