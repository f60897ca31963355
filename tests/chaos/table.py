"""What came of each fault, as rows and as a table. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.lab.user import Tally


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fault: ``host`` it hit, exchanges that went well and that failed, seconds from the first failure to the last,
    the slowest exchange, seconds until everything was as before, what remained wrong, and the verdict."""

    fault: str
    host: str
    done: int
    failed: int
    trouble: float
    slowest: float
    healed: float
    left: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    allowed: float = 0.0

    @property
    def ok(self) -> bool:
        """As promised: nothing failed where nothing may, the rest in its time, and nothing remained."""
        return not self.left and (self.trouble <= self.allowed if self.allowed else not self.failed)


def summed(met: Mapping[str, Tally]) -> tuple[int, int, float, tuple[str, ...]]:
    """Exchanges that went well and that failed, the slowest, and some of the errors with their flow."""
    errors = tuple(f"{flow}: {tally.errors[0]}" for flow, tally in met.items() if tally.errors)
    done, failed = (sum(getattr(tally, name) for tally in met.values()) for name in ("done", "failed"))
    return done, failed, max((tally.worst for tally in met.values()), default=0.0), errors


def render(outcomes: Iterable[Outcome]) -> str:
    """For a terminal: one line a fault, errors below those that broke a promise."""
    lines = [f"{'FAULT':<32}{'HIT':<8}{'WELL':>7}{'FAILED':>8}{'TROUBLE':>9}{'SLOWEST':>9}{'HEALED':>8}  LOST"]
    for each in outcomes:
        lost = "nothing" if not each.failed else f"{each.failed} exchanges, as expected"
        if not each.ok:
            lost = "BROKEN PROMISE: " + ("; ".join(each.left) or f"{each.failed} exchanges failed")
        times = f"{each.trouble:>7.1f} s{each.slowest:>7.2f} s{each.healed:>6.1f} s"
        lines.append(f"{each.fault:<32}{each.host:<8}{each.done:>7}{each.failed:>8}{times}  {lost}")
        lines += [f"    {error}" for error in (() if each.ok else each.errors)]
    return "\n".join(lines)
