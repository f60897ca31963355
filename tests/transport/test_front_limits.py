"""What one source may ask of the front."""

from meshagent.transport.front_limits import SourceRate


def test_a_source_that_hammers_is_refused_others_are_not_and_it_may_come_back() -> None:
    rate = SourceRate(rate=1, burst=3)
    assert [rate.allow("10.0.0.1", 0.0) for _ in range(4)] == [True, True, True, False]
    assert rate.allow("10.0.0.2", 0.0)
    assert rate.allow("10.0.0.1", 1.5)


def test_a_flood_of_sources_takes_bounded_memory() -> None:
    rate = SourceRate(rate=1, burst=3)
    for i in range(30_000):
        rate.allow(f"source {i}", 2.0)
    assert len(rate._buckets) <= 10_001
