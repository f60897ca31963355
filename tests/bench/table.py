"""From samples to the page: which numbers, what they had to reach, whether they did. Pure."""

from collections.abc import Iterable, Sequence

from tests.bench.goals import FIGURES, PATH_CASES, Figure, Kind, PathCase
from tests.bench.samples import DIRECT, Sample, added, middle, ratio, values

BEGIN = "<!-- written by make bench: begin -->"
END = "<!-- written by make bench: end -->"

_SHAPES = {"tcp": "mesh, as `tcp`", "http": "mesh, as `http`", "redis": "mesh, as `redis`", "raw": "raw mTLS"}


def page(text: str, table: str) -> str:
    """``text`` with everything between the markers replaced; raises ``ValueError`` when they aren't there once."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after:
        raise ValueError(f"the page must hold {BEGIN} and {END}, once each")
    return f"{before}{BEGIN}\n{table.strip()}\n{END}{after}"


def render(samples: Sequence[Sample], about: Sequence[str]) -> str:
    """Both tables and, above them, the lines ``about`` the machine and the versions."""
    notes = [f"* {line}" for line in about]
    paths = [_path_row(samples, case, shape) for case in PATH_CASES for shape in case.shapes if shape != DIRECT]
    figures = [_figure_row(samples, figure) for figure in FIGURES]
    return "\n".join(
        [
            *notes,
            "",
            "| load | way | direct | this way | against direct | goal | met |",
            "|---|---|---:|---:|---:|---:|---|",
            *filter(None, paths),
            "",
            "| what | measured | goal | met |",
            "|---|---:|---:|---|",
            *filter(None, figures),
        ]
    )


def missed(samples: Sequence[Sample]) -> list[str]:
    """Titles of what did not reach its goal."""
    found = []
    for case in PATH_CASES:
        for shape, goal in case.goals.items():
            value = _against(samples, case, shape)
            if value is not None and not _reached(case.kind, value, goal):
                found.append(f"{case.title}, {_SHAPES[shape].replace('`', '')}: {_show_against(case, value)}")
    for figure in FIGURES:
        value = middle(samples, figure.name)
        if value is not None and figure.bound is not None and not _reached(figure.kind, value, figure.bound):
            found.append(f"{figure.title.replace('`', '')}: {_number(value)} {figure.unit}")
    return found


def _path_row(samples: Sequence[Sample], case: PathCase, shape: str) -> str:
    value, direct = middle(samples, case.name, shape), middle(samples, case.name, DIRECT)
    against = _against(samples, case, shape)
    if value is None or direct is None or against is None:
        return ""
    goal = case.goals.get(shape)
    bound = "" if goal is None else f"≤ {goal:.0f} {case.unit}" if case.kind is Kind.ADDED else f"≥ {goal:.2f}"
    cells = [
        case.title,
        _SHAPES[shape],
        f"{_number(direct)} {case.unit}",
        f"{_number(value)} {case.unit}",
        f"{_show_against(case, against)}{_spread(samples, case, shape)}",
        bound,
        "" if goal is None else _mark(_reached(case.kind, against, goal)),
    ]
    return f"| {' | '.join(cells)} |"


def _against(samples: Iterable[Sample], case: PathCase, shape: str) -> float | None:
    return added(samples, case.name, shape) if case.kind is Kind.ADDED else ratio(samples, case.name, shape)


def _show_against(case: PathCase, value: float) -> str:
    return f"{value:+.0f} {case.unit}" if case.kind is Kind.ADDED else f"{value:.2f}"


def _spread(samples: Sequence[Sample], case: PathCase, shape: str) -> str:
    """Lowest and highest round, so that nobody takes one decimal too many for real."""
    rounds = sorted({s.round for s in samples if s.case == case.name and s.shape == shape})
    each = [_against([s for s in samples if s.round == number], case, shape) for number in rounds]
    known = [value for value in each if value is not None]
    if len(known) < 2:
        return ""
    low, high = min(known), max(known)
    return f" ({low:+.0f} … {high:+.0f})" if case.kind is Kind.ADDED else f" ({low:.2f} … {high:.2f})"


def _figure_row(samples: Sequence[Sample], figure: Figure) -> str:
    value = middle(samples, figure.name)
    if value is None:
        return ""
    sign = "≥" if figure.kind is Kind.AT_LEAST else "≤"
    goal = "" if figure.bound is None else f"{sign} {_number(figure.bound)} {figure.unit}"
    mark = "" if figure.bound is None else _mark(_reached(figure.kind, value, figure.bound))
    several = len(values(samples, figure.name))
    title = f"{figure.title}, median of {several}" if several > 1 else figure.title
    return f"| {title} | {_number(value)} {figure.unit} | {goal} | {mark} |"


def _reached(kind: Kind, value: float, bound: float) -> bool:
    return value >= bound if kind in (Kind.RATIO, Kind.AT_LEAST) else value <= bound


def _mark(reached: bool) -> str:
    return "yes" if reached else "**no**"


def _number(value: float) -> str:
    """Three digits that count; thousands with a comma."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
