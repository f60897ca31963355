"""How long to wait before the next attempt: arithmetic, the dice are handed in."""

#: First and longest wait, seconds. A hub that comes back has its hosts again within the longest one.
FIRST = 0.5
LONGEST = 8.0

#: A stream that ended by itself after serving is routine (istiod closes every 30 min): back within this, spread out so
#: that a thousand hosts of a restarted hub don't come in one millisecond.
ROUTINE_SPREAD = 1.0


def wait(failures: int, dice: float) -> float:
    """Seconds after ``failures`` rounds in a row in which no address answered; ``dice`` in [0, 1).

    0 failures is a routine close. Half of every wait is jitter.
    """
    if failures == 0:
        return ROUTINE_SPREAD * dice
    full = min(LONGEST, FIRST * float(1 << min(failures - 1, 10)))
    return full * (0.5 + dice / 2)


def behind(dice: float) -> float:
    """Seconds that a second stream leaves the attempts to the first; ``dice`` in [0, 1)."""
    return LONGEST * (0.5 + dice / 2)
