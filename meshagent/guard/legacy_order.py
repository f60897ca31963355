"""When to go back to the front of a chain that others have put rules into. Pure; times are monotonic seconds.

A rule before ours may let through what ours would refuse, so ours goes to the front again at once. A program that wants
to be the first itself would answer that for ever: after a few times in a row ours waits, longer each time, and says so.
"""

from dataclasses import dataclass

#: Moves in a row that cost nothing; the wait after the next is a second, then twice as long each time, at most five
#: minutes. So whoever insists costs at most twelve rewrites of a table in an hour.
FREE_MOVES = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0
#: Nobody went before ours for that long: it is over. More than the longest pause, or a fight would look like peace.
_CALM_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Contest:
    """How often ours has gone back to the front in a row, and when last."""

    moves: int = 0
    last: float = 0.0

    def moved(self, now: float) -> "Contest":
        return Contest(self._in_row(now) + 1, now)

    def wait(self, now: float) -> float:
        """Seconds until ours may go to the front again."""
        beyond = self._in_row(now) - FREE_MOVES
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(beyond, 20)) if beyond >= 0 else 0.0
        return max(0.0, self.last + pause - now)

    def contested(self, now: float) -> bool:
        """Whether somebody insists on being before ours."""
        return self._in_row(now) > FREE_MOVES

    def _in_row(self, now: float) -> int:
        return self.moves if now - self.last < _CALM_SECONDS else 0
