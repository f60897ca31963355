"""How commands reach the daemon of this host and the hub: one request over a Unix socket."""

from pathlib import Path
from typing import Any

from meshagent.cli.context import settings
from meshagent.cli.straight import enrolled
from meshagent.model.errors import ExitCode, MeshagentError, NotEnrolledError
from meshagent.model.paths import Paths
from meshagent.transport.local import MAX_HUB_REQUEST, MAX_REQUEST, call


def call_agent(method: str, timeout: float = 10.0, **params: object) -> dict[str, Any]:
    """Ask the daemon; ``NotEnrolledError`` (3) without an enrolment, exit 4 when the daemon doesn't answer."""
    paths = settings().paths
    if not enrolled(paths):
        raise NotEnrolledError(str(paths.root))
    down = MeshagentError(
        "daemon-down",
        f"the agent does not answer on {paths.control_socket}",
        hint=start_hint(paths),
        exit_code=ExitCode.UNHEALTHY,
    )
    return _call(paths.control_socket, method, params, timeout, MAX_REQUEST, down)


def call_hub(method: str, timeout: float = 30.0, **params: object) -> dict[str, Any]:
    """Ask the hub of this machine through its admin socket."""
    paths = settings().paths
    down = MeshagentError(
        "hub-down",
        f"no hub answers on {paths.hub_socket}",
        hint="start one with: meshagent hub run; as root or a member of group meshagent, on the hub's machine",
    )
    return _call(paths.hub_socket, method, params, timeout, MAX_HUB_REQUEST, down)


def start_hint(paths: Paths) -> str:
    """The line that starts the daemon here."""
    if Path("/run/systemd/system").is_dir() and str(paths.root) == "/":
        return "start it with: systemctl start meshagent"
    root = "" if str(paths.root) == "/" else f" --root {paths.root}"
    return f"start it with: meshagent{root} run"


def _call(
    socket: Path, method: str, params: dict[str, object], timeout: float, limit: int, down: MeshagentError
) -> dict[str, Any]:
    try:
        result: dict[str, Any] = call(socket, method, params, timeout=timeout, limit=limit)
        return result
    except (FileNotFoundError, ConnectionError):
        raise down from None
    except PermissionError:
        raise MeshagentError("not-root", f"{socket} may only be used by root", hint="run the command as root") from None
