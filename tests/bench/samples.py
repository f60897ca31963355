"""A measured number, and the few sums that are done with many of them. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. ``shape`` is the way it took (``direct``, ``tcp``, ``raw`` …), '' where there is only one.

    Samples of one ``case`` with the same ``round`` were taken one after the other and may be compared.
    """

    case: str
    value: float
    shape: str = ""
    round: int = 0


def values(samples: Iterable[Sample], case: str, shape: str = "") -> list[float]:
    """All measured values, in the order of rounds."""
    found = [s for s in samples if s.case == case and s.shape == shape]
    return [s.value for s in sorted(found, key=lambda s: s.round)]


def middle(samples: Iterable[Sample], case: str, shape: str = "") -> float | None:
    """The median; None when nothing was measured."""
    found = values(samples, case, shape)
    return median(found) if found else None


def ratio(samples: Iterable[Sample], case: str, shape: str) -> float | None:
    """The median, over rounds, of this shape's value divided by the direct path's of the same round."""
    pairs = _pairs(list(samples), case, shape)
    return median(mine / direct for mine, direct in pairs) if pairs else None


def added(samples: Iterable[Sample], case: str, shape: str) -> float | None:
    """The median, over rounds, of what this shape adds to the direct path of the same round."""
    pairs = _pairs(list(samples), case, shape)
    return median(mine - direct for mine, direct in pairs) if pairs else None


def _pairs(samples: list[Sample], case: str, shape: str) -> list[tuple[float, float]]:
    of_case = [s for s in samples if s.case == case]
    direct = {s.round: s.value for s in of_case if s.shape == DIRECT and s.value}
    return [(s.value, direct[s.round]) for s in of_case if s.shape == shape and s.round in direct]


def percentile(numbers: Iterable[float], share: float) -> float:
    """The smallest number that at least ``share`` (0 to 1) of them don't exceed; raises ``ValueError`` for none."""
    ordered = sorted(numbers)
    if not ordered:
        raise ValueError("no numbers")
    rank = max(1, -(-len(ordered) * round(share * 1000) // 1000))
    return ordered[min(rank, len(ordered)) - 1]
