from tests.bench.samples import Sample, added, middle, percentile, ratio

MEASURED = [
    Sample("http", 100.0, "direct", 0),
    Sample("http", 40.0, "tcp", 0),
    Sample("http", 50.0, "direct", 1),
    Sample("http", 30.0, "tcp", 1),
    Sample("http", 200.0, "direct", 2),
    Sample("http", 100.0, "tcp", 2),
]


def test_a_ratio_compares_only_within_a_round() -> None:
    assert ratio(MEASURED, "http", "tcp") == 0.5  # of 0.4, 0.6, 0.5; medians divided would give 0.4


def test_what_is_added_compares_only_within_a_round() -> None:
    assert added(MEASURED, "http", "tcp") == -60.0


def test_what_was_not_measured_has_no_value() -> None:
    assert middle(MEASURED, "redis") is None and ratio(MEASURED, "http", "raw") is None


def test_p99_of_a_hundred_numbers_is_the_ninety_ninth() -> None:
    numbers = [float(n) for n in range(1, 101)]
    assert (percentile(numbers, 0.99), percentile(numbers, 0.5), percentile([7.0], 0.99)) == (99.0, 50.0, 7.0)
