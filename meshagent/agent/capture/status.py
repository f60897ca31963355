"""Capture as ``status`` shows it. Pure: an intent and the guard's own account in, one frozen value out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from meshagent.agent.capture import nft
from meshagent.agent.capture.values import Intent, Mode, Redirected, RefusedClaim, Spared


@dataclass(frozen=True, slots=True)
class Restored:
    """Rules of ours that another program took away and the guard put back: how often, and the last time.

    ``at`` is seconds since the epoch; ``pid`` and ``name`` are the program's as the kernel told, ``what`` it did.
    """

    count: int
    at: float
    pid: int
    name: str
    what: str


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """What ``status`` shows. Times are seconds since the epoch, None where there is nothing to say.

    ``active``: something is captured now. ``in_sync``: the kernel holds what the last decision wants.
    ``bypassed_since``: new connections go around a dead proxy since then. ``rolled_back``: why the last change was
    undone, until it is acknowledged. ``hangs``: how often the guard has found the proxy to hang.
    """

    active: bool = False
    in_sync: bool = False
    owned: bool = False
    backend: str = "nft"
    ports: tuple[int, ...] = ()
    strict_ports: tuple[int, ...] = ()
    redirected: tuple[Redirected, ...] = ()
    captured: tuple[str, ...] = ()
    spared: tuple[Spared, ...] = ()
    refused: tuple[RefusedClaim, ...] = ()
    pending_confirm_until: float | None = None
    bypassed_since: float | None = None
    rolled_back: str | None = None
    restored: Restored | None = None
    hangs: int = 0
    error: str = ""


def describe(intent: Intent, state: Mapping[str, Any], digest: str) -> CaptureStatus:
    """``digest`` is that of the ruleset which ``intent`` was rendered to."""
    status = CaptureStatus(
        active=intent.mode is Mode.ACTIVE,
        in_sync=state["digest"] == digest,
        backend=intent.backend.value,
        ports=tuple(sorted((*intent.counted_ports, *intent.strict_ports))),
        strict_ports=intent.strict_ports,
        redirected=intent.redirected,
        captured=intent.captured,
        spared=intent.spared,
        refused=intent.refused,
    )
    return with_state(status, state)


def with_state(status: CaptureStatus, state: Mapping[str, Any]) -> CaptureStatus:
    bypass, pending, undone = state["bypasses"].get(nft.PROXY_GATE), state["pending"], state["rolled_back"]
    return replace(
        status,
        owned=state["owned"],
        restored=Restored(state["heals"], **state["last_heal"]) if state["last_heal"] else None,
        bypassed_since=bypass["since_at"] if bypass else None,
        hangs=state["hangs"],
        pending_confirm_until=pending["until_at"] if pending else None,
        rolled_back=undone["reason"] if undone else None,
    )
