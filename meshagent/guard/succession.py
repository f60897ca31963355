"""One version of the guard follows another without a gap: the process stays, its program is replaced (execve).

What must not end is kept open over it: the netlink socket that owns the table, the lock, the listening socket with the
callers that wait in it. What is known travels in a memory file. The process keeps its pid, so whoever watches it, or
started it, notices nothing; rules are not touched at all. Meanwhile (about 0.1 s) nobody acts on a dying proxy.

The new program must be able to start, so whoever asks for this tries that first (``--preflight``).
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshagent.guard.state import Bypass, Heal, RolledBack, State, Trial, Watch, note_from, ruleset_from, ruleset_to
from meshagent.guard.wire import RequestError, take

#: Changes when a field changes its meaning; fields are only added.
FORMAT = 1
_ENVIRONMENT = frozenset({"PYTHONPATH", "PYTHONHOME"})


@dataclass(frozen=True, slots=True)
class Successor:
    """Which program follows, and what of the environment it needs."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Estate:
    """What is handed on; descriptors are open in this process."""

    state: State
    nft: int
    lock: int
    listener: int
    started_at: float


def successor_from(params: dict[str, Any]) -> Successor:
    """Only root can ask, so what is run is judged for mistakes, not for malice."""
    argv = tuple(str(word) for word in take(params, "argv", list))
    if not argv or not os.access(argv[0], os.X_OK) or not argv[0].startswith("/"):
        raise RequestError("bad-request", "argv must begin with the path of a program")
    wanted = take(params, "environment", dict, {})
    return Successor(argv, {name: str(value) for name, value in wanted.items() if name in _ENVIRONMENT})


def become(successor: Successor, estate: Estate) -> None:
    """Replace this program; returns only when that failed (raises ``OSError``), and then nothing has changed."""
    memory = os.memfd_create("meshagent-guard")
    handed = (memory, estate.nft, estate.lock, estate.listener)
    try:
        with os.fdopen(os.dup(memory), "wb") as file:
            file.write(json.dumps(_document(estate)).encode())
        for descriptor in handed:
            if descriptor >= 0:
                os.set_inheritable(descriptor, True)
        kept = {name: value for name, value in os.environ.items() if name not in _ENVIRONMENT}
        argv = [*successor.argv, "--follow", str(memory)]
        sys.stderr.flush()
        os.execve(argv[0], argv, kept | dict(successor.environment))  # noqa: S606 root asked for exactly this
    finally:
        for descriptor in handed[1:]:
            if descriptor >= 0:
                os.set_inheritable(descriptor, False)
        os.close(memory)


def inherit(memory: int) -> Estate:
    """What the program before left. Raises ``ValueError`` for a format that isn't known."""
    with os.fdopen(memory, "rb") as file:
        file.seek(0)
        document = json.load(file)
    if document["format"] != FORMAT:
        raise ValueError(f"the guard before left format {document['format']}, this one reads {FORMAT}")
    found = Estate(
        state_from(document["state"]), document["nft"], document["lock"], document["listener"], document["started_at"]
    )
    for descriptor in (found.nft, found.lock, found.listener):
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
    return found


def _document(estate: Estate) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "nft": estate.nft,
        "lock": estate.lock,
        "listener": estate.listener,
        "started_at": estate.started_at,
        "state": state_to(estate.state),
    }


def state_to(state: State) -> dict[str, Any]:
    """All that a guard knows, as JSON values."""
    trial, undone, heal = state.trial, state.rolled_back, state.last_heal
    return {
        "installed": ruleset_to(state.installed) if state.installed is not None else None,
        "owned": state.owned,
        "kept": state.kept,
        "bypasses": {gate: [one.since_at, one.reason] for gate, one in state.bypasses.items()},
        "watches": {gate: [one.pid, one.started, one.opens, one.port] for gate, one in state.watches.items()},
        "trial": trial and [trial.deadline, trial.until_at, ruleset_to(trial.back_to), dict(trial.note)],
        "rolled_back": undone and [undone.at, undone.reason, dict(undone.note)],
        "heals": state.heals,
        "last_heal": heal and [heal.at, heal.pid, heal.name, heal.what],
        "hangs": state.hangs,
    }


def state_from(found: dict[str, Any]) -> State:
    """The reverse; a field that an older version doesn't know keeps its default."""
    trial, undone, heal = found["trial"], found["rolled_back"], found["last_heal"]
    return State(
        installed=ruleset_from(found["installed"]) if found["installed"] is not None else None,
        owned=found["owned"],
        kept=found.get("kept", False),
        bypasses={gate: Bypass(*one) for gate, one in found["bypasses"].items()},
        watches={gate: Watch(*one) for gate, one in found["watches"].items()},
        trial=Trial(trial[0], trial[1], ruleset_from(trial[2]), note_from({"note": trial[3]})) if trial else None,
        rolled_back=RolledBack(undone[0], undone[1], note_from({"note": undone[2]})) if undone else None,
        heals=found["heals"],
        last_heal=Heal(*heal) if heal else None,
        hangs=found["hangs"],
    )
