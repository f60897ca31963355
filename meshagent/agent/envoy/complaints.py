"""What is told about the proxy: which condition holds, by what was seen. Every code of this part is in here."""

from meshagent.agent.envoy.epochs import UNMANAGED_SECONDS, Verdict
from meshagent.agent.envoy.looking import Look
from meshagent.model.condition import ConditionSink
from meshagent.model.errors import MeshagentError

NOT_RUNNING = "proxy-not-running"
CRASHING = "proxy-crash-loop"
HUNG = "proxy-hung"
UNMANAGED = "proxy-unmanaged"
SHEDDING = "proxy-memory"
UPGRADE = "proxy-upgrade-available"
MISSING = "envoy-missing"
VERSION = "envoy-version"

#: What a start that failed is called besides ``NOT_RUNNING``.
_CODES = {"envoy-missing": MISSING, "envoy-untested": VERSION, "envoy-unknown": VERSION}
_WHILE_ALIVE = (HUNG, UNMANAGED, SHEDDING, UPGRADE)


class Complaints:
    """Reports to ``sink`` what holds, and takes back what doesn't."""

    def __init__(self, sink: ConditionSink) -> None:
        self._sink = sink

    def not_started(self, error: MeshagentError) -> None:
        """A start failed before there was a process."""
        text = f"{error.message}; {error.hint}" if error.hint else error.message
        self._sink.set(NOT_RUNNING, text)
        if code := _CODES.get(error.code):
            self._sink.set(code, text)

    def started(self) -> None:
        for code in (MISSING, VERSION):
            self._sink.clear(code)

    def ready(self) -> None:
        self._sink.clear(NOT_RUNNING)

    def died(self, pid: int, deaths: int, looping: bool, log: object) -> None:
        """It ended, and nobody asked for it."""
        for code in _WHILE_ALIVE:
            self._sink.clear(code)
        self._sink.set(NOT_RUNNING, f"the proxy (pid {pid}) ended; it is being started again")
        if looping:
            self._sink.set(CRASHING, f"the proxy ended {deaths} times in a row; its log: {log}")

    def lives_well(self) -> None:
        self._sink.clear(CRASHING)

    def looked(self, pid: int, look: Look) -> None:
        """It is alive; ``look`` is how it answered."""
        text = f"pid {pid}: no answer for {look.seconds:.0f} s"
        if look.verdict is None:
            self._holds(HUNG, False)
            self._holds(UNMANAGED, False)
            self._holds(SHEDDING, look.shedding, "new connections wait until memory is freed")
        elif look.verdict is Verdict.SERVES:
            self._holds(HUNG, False)
            self._holds(UNMANAGED, look.seconds >= UNMANAGED_SECONDS, text)
        elif look.verdict in (Verdict.HUNG, Verdict.REPLACE):
            self._sink.set(HUNG, text)

    def on_disk(self, found: str, runs: str) -> None:
        """``found``: version of a binary that is another file than the one that ``runs``; empty for none."""
        self._holds(UPGRADE, bool(found), f"Envoy {found} is installed, {runs} runs")

    def _holds(self, code: str, holds: bool, text: str = "") -> None:
        if holds:
            self._sink.set(code, text)
        else:
            self._sink.clear(code)
