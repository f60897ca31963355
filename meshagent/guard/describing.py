"""The guard's own account of itself: the answer to ``state``."""

import os

from meshagent import __version__
from meshagent.guard.perform import Guard


def describe(guard: Guard) -> dict[str, object]:
    """Times are seconds since the epoch."""
    state, installed = guard.state, guard.state.installed
    return {
        "pid": os.getpid(),
        "version": __version__,
        "started_at": guard.started_at,
        "owner_supported": guard.tables.owner_supported,
        "installed": installed is not None and bool(installed.rules),
        "owned": state.owned,
        "kept": state.kept,
        "digest": installed.digest if installed else "",
        "applied_at": guard.applied_at,
        "kernel_digest": guard.kernel_digest,
        "backend": installed.backend if installed else "",
        "contested": guard.legacy.contested,
        "anchor": guard.tables.anchored or guard.legacy.present,
        "bypasses": {
            gate: {"since_at": value.since_at, "reason": value.reason} for gate, value in state.bypasses.items()
        },
        "watches": {
            gate: {"pid": watch.pid, "opens": watch.opens, "port": watch.port} for gate, watch in state.watches.items()
        },
        "hangs": state.hangs,
        "pending": {"until_at": state.trial.until_at, "note": dict(state.trial.note)} if state.trial else None,
        "rolled_back": (
            {"at": state.rolled_back.at, "reason": state.rolled_back.reason, "note": dict(state.rolled_back.note)}
            if state.rolled_back
            else None
        ),
        "heals": state.heals,
        "last_heal": (
            {"at": heal.at, "pid": heal.pid, "name": heal.name, "what": heal.what}
            if (heal := state.last_heal)
            else None
        ),
    }
