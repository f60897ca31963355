"""Processes whose end or silence opens a gate: pidfds, and questions to the proxy. Acts only through its guard.

``pidfds`` (by gate) are for the loop to wait on, ``retired`` for it to close, after it has stopped waiting: a number
that is closed too early comes back as somebody else's.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Protocol

from meshagent.guard import decide, processes
from meshagent.guard import probe as probing
from meshagent.guard import pulse as pulses
from meshagent.guard.installing import Plan
from meshagent.guard.log import say
from meshagent.guard.probe import Probe
from meshagent.guard.processes import Pidfd
from meshagent.guard.pulse import Pulse
from meshagent.guard.state import State, Watch


class Performer(Protocol):
    """Who keeps the state and brings plans into the kernel."""

    state: State

    def perform(self, plan: Plan) -> None: ...


@dataclass
class Watching:
    """The watched processes of one guard; at most one of them is also asked."""

    guard: Performer
    pidfds: dict[str, Pidfd] = field(default_factory=dict)
    retired: list[Pidfd | Probe] = field(default_factory=list)
    pulse: Pulse | None = None
    asked_gate: str = ""
    probe: Probe | None = None
    place: int = 0

    def watch(self, gate: str, watch: Watch) -> bool:
        """Watch a process; False when it is gone already, and then the gate opens at once as if it had just died."""
        guard, known = self.guard, self.guard.state.watches.get(gate)
        if known and gate in self.pidfds and replace(known, opens=watch.opens) == watch:
            return self._watch_on(gate, watch)
        self.retire(gate)
        guard.state = guard.state.with_watch(gate, watch)
        opened = processes.open_pidfd(watch.pid, watch.started)
        if opened is None:
            self.died(gate)
            return False
        self.pidfds[gate] = opened
        if watch.port:
            hung = decide.hangs(guard.state, watch)
            self.asked_gate, self.pulse = gate, replace(pulses.begin(time.monotonic()), hung=hung)
        return True

    def _watch_on(self, gate: str, watch: Watch) -> bool:
        """The same process under another policy: whether it hangs is known already."""
        self.guard.state = self.guard.state.with_watch(gate, watch)
        if self.pulse and self.pulse.hung and gate == self.asked_gate and watch.opens:
            self.guard.perform(decide.bypass(self.guard.state, gate, f"process {watch.pid} hangs", time.time()))
        return True

    def unwatch(self, gate: str) -> None:
        self.retire(gate)
        self.guard.state = self.guard.state.without_watch(gate)

    def hangs(self, gate: str) -> bool:
        """Found to hang, and not well yet."""
        return self.pulse is not None and self.pulse.hung and gate == self.asked_gate

    def died(self, gate: str) -> None:
        """The process watched for this gate has ended."""
        self.retire(gate)
        watch = self.guard.state.watches.get(gate)
        if watch is None:
            return
        self.guard.perform(decide.process_died(self.guard.state, gate, watch, time.time()))
        say("watched process ended", gate=gate, pid=watch.pid, bypassed=gate in self.guard.state.bypasses)

    def retire(self, gate: str) -> None:
        """Nobody waits for this process any more; if it hung, that is over, and its successor is asked."""
        if gate in self.pidfds:
            self.retired.append(self.pidfds.pop(gate))
        if gate == self.asked_gate and self.pulse is not None:
            was_hung, self.pulse = self.pulse.hung, None
            self._drop_probe()
            if was_hung:
                self.guard.perform(decide.recapture(self.guard.state, decide.HUNG_GATE))

    # --- does it answer? ---------------------------------------------------------------------------------------------

    def beat_in(self) -> float | None:
        """Seconds until ``beat`` should be called; None while no process is asked whether it answers."""
        return self.pulse.wake_in(time.monotonic()) if self.pulse else None

    def beat(self) -> None:
        """Ask, and judge the silence. Called after all answers that are there have been taken."""
        guard, now = self.guard, time.monotonic()
        watch = guard.state.watches.get(self.asked_gate)
        if self.pulse is None or watch is None:
            return
        self.pulse = self.pulse.seen(now)
        if self.pulse.silent(now):
            self.pulse = self.pulse.stopped(now)
            guard.perform(decide.hung(guard.state, self.asked_gate, watch, time.time()))
            say("watched process hangs", gate=self.asked_gate, pid=watch.pid, bypassed=watch.opens)
        if self.pulse.wants_to_ask(now):
            self._ask(self.pulse, watch.port, now)

    def answered(self) -> None:
        """The open question was answered, by whatever means."""
        if self.pulse is None or self.probe is None:
            return
        if self.probe.refused():
            self.place += 1  # on a host with one family the listener is on the other loopback
        self._drop_probe()
        before, self.pulse = self.pulse, self.pulse.answered(time.monotonic())
        if before.hung and not self.pulse.hung:
            self.guard.perform(decide.well(self.guard.state, self.asked_gate))
            say("watched process answers again", gate=self.asked_gate)

    def _ask(self, pulse: Pulse, port: int, now: float) -> None:
        self._drop_probe()
        self.pulse, self.probe = pulse.asking(now), probing.ask(port, self.place)
        if self.probe is None:
            self.place += 1
            self.pulse = self.pulse.answered(now)

    def _drop_probe(self) -> None:
        if self.probe is not None:
            self.retired.append(self.probe)
            self.probe = None
