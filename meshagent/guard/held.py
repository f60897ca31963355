"""What the guard knows, beside its socket: so that one that was killed is followed by one that goes on in its place.

``run/meshagent/guard.state``: gone after a reboot, and never read in another boot. The next guard compares it with the
kernel before it believes a word, so a file that is a moment behind does no harm.
"""

import contextlib
import json
import os
from pathlib import Path

from meshagent.guard.state import NFT, State
from meshagent.guard.succession import state_from, state_to
from meshagent.guard.wire import RequestError

FORMAT = 1


def save(path: Path, state: State, boot: str) -> None:
    """Write it whole or not at all; no file where nothing is installed. Raises ``OSError``."""
    if state.installed is None:
        path.unlink(missing_ok=True)
        return
    document = {"format": FORMAT, "boot": boot, "state": state_to(state)}
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(document).encode())
    temporary.replace(path)


def load(path: Path, boot: str) -> State | None:
    """What the guard before knew, where it had rules of nftables in this boot; what can't be read is nothing."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError, RequestError):
        document = json.loads(path.read_bytes())
        if document["format"] == FORMAT and document["boot"] == boot:
            state = state_from(document["state"])
            if state.installed is not None and state.installed.rules and state.installed.backend == NFT:
                return state
    return None
