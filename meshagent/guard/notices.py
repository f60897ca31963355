"""What the guard tells systemd: ready, how it is, that its loop still turns. Silent where nobody asked."""

from meshagent.guard.state import State
from meshagent.machine.notify import notify, watchdog_interval


class Notices:
    """``beat`` is called once in every round of the loop; ``pause`` is how long a round may take at most."""

    def __init__(self) -> None:
        self._interval = watchdog_interval()
        self._due = 0.0
        self._said = ""

    def ready(self) -> None:
        """The socket listens."""
        notify("READY=1")

    def beat(self, state: State, now: float) -> None:
        """``now``: monotonic seconds."""
        states = []
        if self._interval is not None and now >= self._due:
            self._due = now + self._interval
            states.append("WATCHDOG=1")
        text = status(state)
        if text != self._said:
            states.append(f"STATUS={text}")
        if states and notify(*states):
            self._said = text

    def pause(self, wait: float, now: float) -> float:
        """``wait``, or less where the watchdog wants to hear before."""
        return wait if self._interval is None else max(0.0, min(wait, self._due - now))

    def stopping(self) -> None:
        """From here on the rules go."""
        notify("STOPPING=1")


def status(state: State) -> str:
    """One line for ``systemctl status``."""
    if state.installed is None:
        return "no rules are installed"
    parts = ["rules are in place", f"{len(state.watches)} processes watched"]
    if state.bypasses:
        parts.append(f"bypassed: {', '.join(sorted(state.bypasses))}")
    if state.trial is not None:
        parts.append("a change waits for confirmation")
    if state.heals:
        parts.append(f"put back {state.heals} times")
    return ", ".join(parts)
