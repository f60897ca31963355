"""Talking to the guard: a small synchronous client, safe to use from several threads (one request at a time).

Every answer comes within milliseconds, so the agent calls it through ``asyncio.to_thread``. A lost connection is
opened again by the next call; the guard keeps its state, so nothing has to be repeated.
"""

import json
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meshagent.guard import wire
from meshagent.guard.elements import Change
from meshagent.guard.state import Ruleset, changes_to, ruleset_to
from meshagent.model.errors import MeshagentError

#: A connection may be lost with the guard before, and once more with one that ends while it is asked.
_ATTEMPTS = 3


class GuardUnreachableError(MeshagentError):
    """No guard answers on its socket."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            "guard-unreachable",
            f"the guard doesn't answer on {path}: {why}",
            hint="start it: systemctl start meshagent-guard, or restart meshagent",
        )


class GuardRefusedError(MeshagentError):
    """The guard, or the kernel behind it, refused a request; ``code`` is the guard's own."""


def command(root: Path) -> list[str]:
    """The argv that starts the guard of a root; give it a session of its own, it must outlive the agent."""
    return [sys.executable, "-m", "meshagent.guard", "--root", str(root)]


class GuardClient:
    """One connection to ``guard.sock``. ``timeout`` in seconds for each answer.

    Methods raise ``GuardUnreachableError`` or ``GuardRefusedError``.
    """

    def __init__(self, path: Path, timeout: float = 5.0) -> None:
        self._path, self._timeout = path, timeout
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._lines = wire.LineBuffer(wire.MAX_ANSWER)
        self._number = 0

    def check(self, ruleset: Ruleset) -> None:
        """Let the kernel judge a ruleset; nothing changes."""
        self.call("check", **ruleset_to(ruleset))

    def apply(self, ruleset: Ruleset) -> bool:
        """Install a ruleset in one transaction. True when the kernel ties the table to the guard's life."""
        return bool(self.call("apply", **ruleset_to(ruleset))["owned"])

    def update(self, changes: Mapping[str, Change], expects: str, digest: str) -> bool:
        """Change addresses in sets. ``expects`` is the digest of what must be installed, ``digest`` of what is then.

        Refused with code ``other-rules`` when something else is installed. True as for ``apply``.
        """
        return bool(self.call("update", changes=changes_to(changes), expects=expects, digest=digest)["owned"])

    def remove(self, *, anchor: bool) -> None:
        """Take our table out; with ``anchor`` also the table that keeps captured connections alive."""
        self.call("remove", anchor=anchor)

    def bypass(self, gate: str, reason: str) -> None:
        """Let new connections pass around the helper behind ``gate`` (``proxy``, ``resolver``)."""
        self.call("bypass", gate=gate, reason=reason)

    def recapture(self, gate: str) -> None:
        self.call("recapture", gate=gate)

    def watch(self, gate: str, pid: int, started: int, *, opens: bool, port: int = 0) -> bool:
        """Bypass ``gate`` the moment this process ends, if it ``opens``. False when it is gone already.

        With a ``port`` it is also asked there, on loopback, whether it still answers; while it doesn't, its gate is
        open and what has no way around is refused.
        """
        return bool(self.call("watch", gate=gate, pid=pid, started=started, opens=opens, port=port)["alive"])

    def unwatch(self, gate: str) -> None:
        self.call("unwatch", gate=gate)

    def deadman(self, seconds: float, note: Mapping[str, str], back_to: Ruleset | None = None) -> float:
        """Roll back to ``back_to`` (default: what is installed) unless confirmed in time. Returns the end (epoch)."""
        params: dict[str, Any] = {"seconds": seconds, "note": dict(note)}
        if back_to is not None:
            params["back_to"] = ruleset_to(back_to)
        return float(self.call("deadman", **params)["until_at"])

    def confirm(self) -> bool:
        """Keep the pending change; False when none was pending."""
        return bool(self.call("confirm")["confirmed"])

    def acknowledge(self) -> None:
        """The roll-back has been noted; the guard forgets it."""
        self.call("acknowledge")

    def listing(self, *, anchor: bool = False) -> str | None:
        """The table as libnftables-json(5) with counters; None when it isn't there."""
        found = self.call("list", anchor=anchor)["nft"]
        return None if found is None else str(found)

    def verify(self) -> str:
        """How the kernel's table compares with what was put there: ``equal``, ``changed`` or ``missing``."""
        return str(self.call("verify")["sync"])

    def state(self) -> dict[str, Any]:
        """See ``perform.Guard.describe``."""
        return self.call("state")

    def quit(self) -> None:
        """End the guard; its table goes, the anchor stays."""
        self.call("quit")

    def succeed(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """Let the guard become another program, its next version; rules, socket and callers are kept (succession.py).

        Returns before it has; ``state()["version"]`` tells.
        """
        params = {"argv": list(argv), "environment": dict(environment)}
        try:
            self.call("succeed", **params)
        except GuardRefusedError as error:
            if error.code != "wrong-version":
                raise
            with self._lock:  # a guard that speaks another version understands this much
                self._exchange("succeed", params)

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One request and its answer; a guard that was restarted or followed by another since is found again."""
        with self._lock:
            for attempt in range(_ATTEMPTS):
                try:
                    if self._connection is None:
                        self._connect()
                    return self._exchange(method, params)
                except (ConnectionResetError, BrokenPipeError, EOFError) as error:
                    self._disconnect()
                    if attempt == _ATTEMPTS - 1:
                        raise GuardUnreachableError(self._path, _why(error)) from error
                except OSError as error:
                    self._disconnect()
                    raise GuardUnreachableError(self._path, _why(error)) from error
        raise AssertionError("every attempt returns or raises")

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.settimeout(self._timeout)
        self._connection, self._lines = connection, wire.LineBuffer(wire.MAX_ANSWER)
        connection.connect(str(self._path))
        self._exchange("hello", {"version": wire.VERSION})

    def _exchange(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        assert self._connection is not None
        self._number += 1
        self._connection.sendall(wire.request(self._number, method, params))
        answer = self._answer()
        if error := answer.get("error"):
            raise GuardRefusedError(error["code"], error["message"], hint=error.get("hint", ""))
        result = answer.get("result")
        return result if isinstance(result, dict) else {}

    def _answer(self) -> dict[str, Any]:
        assert self._connection is not None
        while data := self._connection.recv(1 << 16):
            for line in self._lines.feed(data):
                answer = json.loads(line)
                if answer.get("id") == self._number:
                    return dict(answer)
        raise EOFError

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _why(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "it closed the connection"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error)
