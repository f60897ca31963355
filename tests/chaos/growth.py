"""Whether processes stay as big as they are: readings over a time, medians of its thirds, a verdict. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

#: What counts as flat from the middle third to the last: allocators breathe.
BYTES, SHARE, DESCRIPTORS = 2_000_000, 0.03, 4

#: Minutes in which a proxy still grows under steady changes. Envoy keeps a removed listener for its drain time, 600 s,
#: so that its connections live on: 18 KB each (1.40.0; 700 of them after ten minutes of soaking: heap 9.3 to 21.7 MB in
#: a straight line, then level, and not a page more for as long as it was watched).
DRAIN_MINUTES = 10.0


def judged_from(minutes: float) -> float:
    """The minute from which on readings count: once as many listeners end as begin, where at least a third of the time
    is left then; a shorter soak is judged from its beginning and may find proxies that still fill up."""
    return DRAIN_MINUTES + 0.5 if minutes >= 1.5 * (DRAIN_MINUTES + 0.5) else 0.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One process at one moment: bytes resident, open descriptors."""

    process: str
    resident: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class Growth:
    """Medians of the three thirds of the time, oldest first."""

    process: str
    resident: tuple[float, float, float]
    descriptors: tuple[float, float, float]

    @property
    def ok(self) -> bool:
        """Flat: a leak goes on, so it shows between the second and the last third."""
        _, before, after = self.resident
        _, opened, open_now = self.descriptors
        return after - before <= BYTES + SHARE * before and open_now - opened <= DESCRIPTORS


def growths(readings: Sequence[Reading]) -> list[Growth]:
    """One for each process that was read at least three times; readings in the order of time."""
    found = []
    for process in dict.fromkeys(reading.process for reading in readings):
        mine = [reading for reading in readings if reading.process == process]
        thirds = [mine[len(mine) * part // 3 : len(mine) * (part + 1) // 3] for part in range(3)]
        if all(thirds):
            first, second, third = (median(r.resident for r in part) for part in thirds)
            one, two, three = (median(r.descriptors for r in part) for part in thirds)
            found.append(Growth(process, (first, second, third), (one, two, three)))
    return found


def render(found: Iterable[Growth]) -> str:
    """For a terminal: one line a process."""
    lines = [f"{'PROCESS':<20}{'MB: FIRST':>10}{'MIDDLE':>8}{'LAST':>8}{'FDS: FIRST':>12}{'MIDDLE':>8}{'LAST':>6}"]
    for each in found:
        first, middle, last = (f"{value / 1e6:.1f}" for value in each.resident)
        opened = "{:>12.0f}{:>8.0f}{:>6.0f}".format(*each.descriptors)
        lines.append(f"{each.process:<20}{first:>10}{middle:>8}{last:>8}{opened}{'' if each.ok else '  GROWS'}")
    return "\n".join(lines)
