"""Which Envoy to run: adopt the one that lives, or start a new one. Decided from facts, without looking at the world.

A living Envoy that is proven ours is always adopted, even if its bootstrap or binary has changed since: xDS brings
everything that matters, and a restart for the rest is the operator's or the upgrade's choice (``next_epoch``).
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from meshagent.model.errors import MeshagentError

#: Waits before starts number 1, 2, 3 … of a proxy that keeps dying, in seconds.
BACKOFF = (0.0, 0.2, 1.0, 5.0, 10.0, 20.0, 30.0)

#: A proxy that lived this long was healthy: the next death starts with the first wait again.
HEALTHY_SECONDS = 60.0

#: So many deaths without a healthy life in between are a crash loop.
CRASH_LOOP = 4

#: Envoy releases this agent is tested with, both ends included (major, minor).
OLDEST_TESTED = (1, 37)
NEWEST_TESTED = (1, 40)


#: A proxy whose admin interface and listener are both silent counts as hung from the second look on (3 to 4 s) and is
#: killed after so many seconds: a main thread that takes in 1,000 clusters is busy for half a second.
HUNG_LOOKS = 2
HUNG_SECONDS = 10.0
#: One that serves but can't be asked is told about after so many.
UNMANAGED_SECONDS = 15.0
#: One that never served may take longer: its first page faults come from a cold disk.
STARTING_SECONDS = 30.0


#: Seconds between looks at a proxy that serves, and at one that doesn't yet: often while it boots (it serves 40 ms
#: after its start, with 1,000 services a second), seldom when it waits for a control plane.
SERVING_LOOK = 1.0
BOOTING_LOOK, WAITING_LOOK = 0.005, 0.1
BOOTING_SECONDS = 2.0


def look_wait(age: float, *, ready: bool) -> float:
    """Seconds until the next look at a proxy of this ``age``."""
    if ready:
        return SERVING_LOOK
    return BOOTING_LOOK if age < BOOTING_SECONDS else WAITING_LOOK


class Listening(StrEnum):
    """What a connection to the proxy's listener met."""

    ANSWERS = "answers"
    SILENT = "silent"  # the kernel accepts, nobody takes it
    NONE = "none"  # nobody listens: nothing is captured here, or not yet


class Verdict(StrEnum):
    """What to make of a living proxy whose admin interface doesn't answer."""

    SERVES = "serves"
    WAIT = "wait"
    HUNG = "hung"
    REPLACE = "replace"


def judge_silence(looks: int, seconds: float, listening: Listening, *, served: bool) -> Verdict:
    """``looks`` in a row without an answer, over ``seconds``; ``served``: it was ready before.

    Looks count beside seconds: after this agent itself was stopped for a minute, one late answer proves nothing.
    """
    if listening is Listening.ANSWERS:
        return Verdict.SERVES
    if looks < HUNG_LOOKS:
        return Verdict.WAIT
    if looks > HUNG_LOOKS and seconds >= (HUNG_SECONDS if served else STARTING_SECONDS):
        return Verdict.REPLACE
    return Verdict.HUNG if served else Verdict.WAIT


class Start(StrEnum):
    """What to do when the agent comes up."""

    ADOPT = "adopt"
    FRESH = "fresh"


@dataclass(frozen=True, slots=True)
class Found:
    """``recorded``: a record exists; ``proven``: that very process lives; ``draining``: it was told to go."""

    recorded: bool
    proven: bool
    draining: bool = False


def on_start(found: Found) -> Start:
    """Adopt the recorded process only with proof; one that was told to drain is on its way out and not adopted."""
    return Start.ADOPT if found.recorded and found.proven and not found.draining else Start.FRESH


def restart_wait(deaths: int) -> float:
    """Seconds before the next start after ``deaths`` ≥ 1 deaths in a row."""
    return BACKOFF[min(max(deaths, 1) - 1, len(BACKOFF) - 1)]


def deaths_in_a_row(before: int, lived: float) -> int:
    """The count after one more death of a proxy that lived for ``lived`` seconds."""
    return 1 if lived >= HEALTHY_SECONDS else before + 1


def next_epoch(living: Collection[int]) -> int:
    """The epoch of a hot restart beside the ``living`` ones.

    Raises ``MeshagentError`` when two live: a third would end the first, and with it its long connections.
    """
    if len(living) > 1:
        raise MeshagentError(
            "restart-too-early",
            "the previous proxy still serves long connections",
            hint="wait until it has ended; `meshagent status` shows it",
        )
    return max(living, default=-1) + 1


def parse_version(text: str) -> str | None:
    """``1.40.0`` out of ``envoy --version``; None when the program is no Envoy.

    The line reads ``.../envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL``.
    """
    _, found, rest = text.partition("version: ")
    parts = rest.split("/")
    if not found or len(parts) < 3 or "envoy" not in text:
        return None
    numbers = parts[1].removesuffix("-dev").split(".")
    ok = len(numbers) == 3 and all(n.isascii() and n.isdigit() and len(n) < 5 for n in numbers)
    return ".".join(numbers) if ok else None


def require_tested(version: str, *, allowed: str = "") -> None:
    """Raises ``MeshagentError`` ``envoy-untested`` for a release outside the tested range, unless it is ``allowed``."""
    major, minor, _ = (int(n) for n in version.split("."))
    if version == allowed or OLDEST_TESTED <= (major, minor) <= NEWEST_TESTED:
        return
    tested = f"{_dotted(OLDEST_TESTED)} to {_dotted(NEWEST_TESTED)}"
    raise MeshagentError(
        "envoy-untested",
        f"Envoy {version} is outside the tested range {tested}",
        hint=f'install Envoy {_dotted(NEWEST_TESTED)}, or set proxy.allow_version: "{version}" in agent.yaml',
    )


def _dotted(pair: tuple[int, int]) -> str:
    return f"{pair[0]}.{pair[1]}"
