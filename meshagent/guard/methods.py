"""The requests of guard.sock: parameters in, the guard's answer out. ``hello`` comes first on every connection."""

import os
from collections.abc import Callable
from typing import Any

from meshagent.guard.describing import describe
from meshagent.guard.perform import Guard
from meshagent.guard.state import MAX_TRIAL_SECONDS, Watch, changes_from, note_from, ruleset_from
from meshagent.guard.wire import VERSION, Request, RequestError, take

#: What a gate may be called; the agent uses ``proxy`` and ``resolver``.
_GATES = frozenset({"proxy", "resolver"})


def hello(guard: Guard, params: dict[str, Any]) -> object:
    """Agree on the version. A newer agent replaces the guard, it never talks down to it."""
    version = take(params, "version", int)
    if version != VERSION:
        raise RequestError(
            "wrong-version", f"the guard speaks version {VERSION}, not {version}", "restart meshagent-guard"
        )
    return {"version": VERSION, "pid": os.getpid(), "owner_supported": guard.tables.owner_supported}


def _check(guard: Guard, params: dict[str, Any]) -> object:
    guard.check(ruleset_from(params))
    return {}


def _apply(guard: Guard, params: dict[str, Any]) -> object:
    guard.apply(ruleset_from(params))
    return {"owned": guard.state.owned}


def _update(guard: Guard, params: dict[str, Any]) -> object:
    guard.update(changes_from(params), take(params, "expects", str), take(params, "digest", str))
    return {"owned": guard.state.owned}


def _remove(guard: Guard, params: dict[str, Any]) -> object:
    guard.remove(take(params, "anchor", bool, False))
    return {}


def _bypass(guard: Guard, params: dict[str, Any]) -> object:
    guard.bypass(_gate(params), take(params, "reason", str, "asked for")[:200])
    return {}


def _recapture(guard: Guard, params: dict[str, Any]) -> object:
    guard.recapture(_gate(params))
    return {}


def _watch(guard: Guard, params: dict[str, Any]) -> object:
    pid, started, opens = take(params, "pid", int), take(params, "started", int), take(params, "opens", bool)
    watch = Watch(pid, started, opens, take(params, "port", int, 0))
    if not 0 < watch.pid < 1 << 22:
        raise RequestError("bad-request", f"{watch.pid} is not a process id")
    if not 0 <= watch.port < 1 << 16:
        raise RequestError("bad-request", f"{watch.port} is not a port")
    return {"alive": guard.watching.watch(_gate(params), watch)}


def _unwatch(guard: Guard, params: dict[str, Any]) -> object:
    guard.watching.unwatch(_gate(params))
    return {}


def _deadman(guard: Guard, params: dict[str, Any]) -> object:
    seconds = float(take(params, "seconds", int if isinstance(params.get("seconds"), int) else float))
    if not 0 < seconds <= MAX_TRIAL_SECONDS:
        raise RequestError("bad-request", f"{seconds} s is not a time to confirm in")
    back_to = take(params, "back_to", dict, {}) if "back_to" in params else None
    until = guard.arm(seconds, None if back_to is None else ruleset_from(back_to), note_from(params))
    return {"until_at": until}


def _confirm(guard: Guard, params: dict[str, Any]) -> object:
    return {"confirmed": guard.confirm()}


def _acknowledge(guard: Guard, params: dict[str, Any]) -> object:
    guard.acknowledge()
    return {}


def _list(guard: Guard, params: dict[str, Any]) -> object:
    return {"nft": guard.listing(take(params, "anchor", bool, False))}


def _verify(guard: Guard, params: dict[str, Any]) -> object:
    return {"sync": guard.verify()}


def _state(guard: Guard, params: dict[str, Any]) -> object:
    return describe(guard)


METHODS: dict[str, Callable[[Guard, dict[str, Any]], object]] = {
    "check": _check,
    "apply": _apply,
    "update": _update,
    "remove": _remove,
    "bypass": _bypass,
    "recapture": _recapture,
    "watch": _watch,
    "unwatch": _unwatch,
    "deadman": _deadman,
    "confirm": _confirm,
    "acknowledge": _acknowledge,
    "list": _list,
    "verify": _verify,
    "state": _state,
}


def dispatch(guard: Guard, request: Request) -> object:
    """Run one request. Raises ``RequestError``."""
    method = METHODS.get(request.method)
    if method is None:
        raise RequestError("unknown-method", f"the guard has no method {request.method[:40]!r}")
    return method(guard, request.params)


def _gate(params: dict[str, Any]) -> str:
    gate = str(take(params, "gate", str))
    if gate not in _GATES:
        raise RequestError("bad-request", f"{gate[:40]!r} is not a gate", f"one of {', '.join(sorted(_GATES))}")
    return gate
