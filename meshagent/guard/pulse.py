"""Does the watched proxy still answer? Pure: times in, the next pulse out; probe.py asks, perform.py acts.

A process that is stopped or deadlocked is alive to its pidfd, and the kernel accepts connections for it. So it is
asked: a connection to its own listener, which a living proxy closes at once. No answer for ``PATIENCE`` means hung:
with one question every ``INTERVAL`` that is at most 1.7 s after it stopped. A healthy Envoy on two overloaded cores
answers within 0.1 s, so a busy one isn't mistaken for a hung one; and time in which the guard itself did not run
doesn't count.

It counts as well again when it answered a few times in a row, more often each time it hung lately: no flapping.
"""

from dataclasses import dataclass, replace

INTERVAL = 0.5
PATIENCE = 1.2
#: A question a hung proxy never took is asked anew: with a full backlog the kernel drops it and repeats it ever later.
_RENEW = 2.0
#: The guard wakes at least every INTERVAL while it asks; more than this later it was held up itself.
_HELD_UP = 0.4
#: Answers in a row after the first hang; doubled for each further one within FORGIVEN seconds, up to MOST.
_FEWEST, _MOST, _FORGIVEN = 2, 32, 60.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """``asked_at``: since when a question is open. All times are seconds of one monotonic clock."""

    next_at: float
    seen_at: float
    asked_at: float | None = None
    opened_at: float = 0.0
    hung: bool = False
    good: int = 0
    needed: int = _FEWEST // 2
    hung_at: float = float("-inf")

    def wake_in(self, now: float) -> float:
        """Seconds until there is something to do."""
        if self.asked_at is None:
            return max(0.0, self.next_at - now)
        if self.hung:
            return max(0.0, self.opened_at + _RENEW - now)
        return max(0.0, min(self.asked_at + PATIENCE - now, INTERVAL))

    def seen(self, now: float) -> "Pulse":
        """The guard runs; what it slept through while held up is no silence of the proxy's."""
        late = now - self.seen_at - INTERVAL
        if late > _HELD_UP and self.asked_at is not None and not self.hung:
            return replace(self, seen_at=now, asked_at=min(now, self.asked_at + late + INTERVAL))
        return replace(self, seen_at=now)

    def wants_to_ask(self, now: float) -> bool:
        if self.asked_at is None:
            return now >= self.next_at
        return self.hung and now >= self.opened_at + _RENEW

    def asking(self, now: float) -> "Pulse":
        """A question goes out; a repeated one doesn't make the silence shorter."""
        return replace(self, asked_at=now if self.asked_at is None else self.asked_at, opened_at=now)

    def silent(self, now: float) -> bool:
        """Just found to hang."""
        return not self.hung and self.asked_at is not None and now >= self.asked_at + PATIENCE

    def stopped(self, now: float) -> "Pulse":
        again = now - self.hung_at < _FORGIVEN
        needed = min(_MOST, self.needed * 2) if again else _FEWEST
        return replace(self, hung=True, good=0, needed=needed, hung_at=now)

    def answered(self, now: float) -> "Pulse":
        """``hung`` ends here, once there were answers enough."""
        good = self.good + 1
        well = not self.hung or good >= self.needed
        return replace(self, asked_at=None, next_at=now + INTERVAL, good=good, hung=not well)


def begin(now: float) -> Pulse:
    return Pulse(next_at=now, seen_at=now)
