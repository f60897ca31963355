"""When to renew, and how long what we have will last: arithmetic with ``now`` handed in.

Two classes of certificates exist in practice. The hub's live for days: renewing daily leaves six days in which the hub
may be away. istiod's live for 24 h or less: they renew at half life. Jitter spreads a fleet that was enrolled by one
playbook in the same minute.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

DAY = timedelta(days=1)
#: Certificates of 24 h carry two back-dated minutes; anything up to this counts as a day.
SHORT_LIVED = DAY + timedelta(minutes=10)

#: Renewal moves by up to this part of its interval, either way.
JITTER = 0.1

#: Overdue (the host was off): spread over this many seconds, so that a rack that boots together does not call at once.
OVERDUE_SPREAD = 5.0

RETRY_FIRST = 1.0
RETRY_LONGEST = 300.0

#: Below this rest of life a failing renewal is an error, not a warning to be slept over.
URGENT = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class HubTime:
    """One reading of the control plane's clock: it said ``reading`` (aware UTC) when ours was at ``monotonic``.

    From then on time goes by the monotonic clock: a wall clock that jumps a day changes nothing.
    """

    reading: datetime
    monotonic: float

    def at(self, monotonic: float) -> datetime:
        """The control plane's time at another moment of our monotonic clock."""
        return self.reading + timedelta(seconds=monotonic - self.monotonic)


def renewal_due(not_before: datetime, not_after: datetime, spread: float) -> datetime:
    """When to renew; ``spread`` in [-1, 1] places this host within the jitter."""
    life = not_after - not_before
    interval = life / 2 if life <= SHORT_LIVED else min(DAY, life / 2)
    return not_before + interval * (1 + JITTER * max(-1.0, min(1.0, spread)))


def seconds_until_renewal(not_before: datetime, not_after: datetime, now: datetime, spread: float) -> float:
    """How long to wait from ``now``; an overdue one waits for up to ``OVERDUE_SPREAD`` seconds."""
    wait = (renewal_due(not_before, not_after, spread) - now).total_seconds()
    return wait if wait > 0 else OVERDUE_SPREAD * (spread + 1) / 2


def retry_delay(failures: int, left: timedelta, spread: float) -> float:
    """Seconds until the next attempt after ``failures`` ≥ 1 in a row: 1, 2, 4 … 300 s, half of it jitter.

    Never more than a tenth of the life that is left, so that a short certificate gets ten chances.
    """
    longest = max(RETRY_FIRST, min(RETRY_LONGEST, left.total_seconds() / 10)) if left > timedelta(0) else RETRY_LONGEST
    full = min(longest, RETRY_FIRST * float(1 << min(failures - 1, 16)))
    return full * (0.75 + 0.25 * max(-1.0, min(1.0, spread)))


def time_left_text(left: timedelta) -> str:
    """``6 d 3 h``, ``11 h``, ``42 min``, ``expired``: two units at most, rounded down."""
    minutes = int(left.total_seconds() // 60)
    if left <= timedelta(0):
        return "expired"
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {minutes % 60} min" if hours < 3 and minutes % 60 else f"{hours} h"
    return f"{minutes} min" if minutes else "less than a minute"
