import pytest

from tests.bench import table
from tests.bench.samples import Sample

MEASURED = [
    Sample("http-keepalive", 50_000.0, "direct", 0),
    Sample("http-keepalive", 19_000.0, "tcp", 0),
    Sample("http-keepalive", 10_000.0, "http", 0),
    Sample("redis-p50", 40.0, "direct", 0),
    Sample("redis-p50", 100.0, "tcp", 0),
    Sample("names", 70_000.0),
]


def row(text: str, *words: str) -> str:
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_a_goal_that_was_not_reached_is_shown_plainly() -> None:
    text = table.render(MEASURED, ["a machine"])
    assert row(text, "32 kept", "as `tcp`").endswith("| 0.38 | ≥ 0.40 | **no** |")
    assert table.missed(MEASURED) == ["HTTP, 32 kept connections, mesh, as tcp: 0.38"]


def test_a_way_without_a_goal_is_shown_without_a_judgement() -> None:
    assert row(table.render(MEASURED, []), "32 kept", "as `http`").endswith("| 0.20 |  |  |")


def test_what_is_added_is_compared_with_direct_in_its_own_unit() -> None:
    assert row(table.render(MEASURED, []), "Redis GET, one").endswith("| +60 µs | ≤ 90 µs | yes |")


def test_more_is_better_where_the_goal_is_a_lower_bound() -> None:
    assert row(table.render(MEASURED, []), "names").endswith("| 70,000 queries/s | ≥ 60,000 queries/s | yes |")


def test_only_what_lies_between_the_markers_is_replaced() -> None:
    before = f"text\n{table.BEGIN}\nold\n{table.END}\nmore\n"
    assert table.page(before, "new") == f"text\n{table.BEGIN}\nnew\n{table.END}\nmore\n"


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="once each"):
        table.page("text", "new")
