"""A guesser is slowed down, a fleet is not, and nobody fills the memory."""

from ipaddress import ip_address

from meshagent.hub.authority.ratelimit import MAX_SOURCES, RateLimit


def test_a_burst_then_one_a_second() -> None:
    limit = RateLimit(burst=3, per_second=1)
    source = ip_address("10.0.0.1")
    assert [limit.allow(source, 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert limit.allow(source, 1.0) and not limit.allow(source, 1.0)
    assert limit.allow(ip_address("10.0.0.2"), 1.0)


def test_one_ipv6_network_is_one_source() -> None:
    limit = RateLimit(burst=1, per_second=0)
    assert limit.allow(ip_address("2001:db8::1"), 0.0) and not limit.allow(ip_address("2001:db8::ffff"), 0.0)
    assert limit.allow(ip_address("2001:db8:0:1::1"), 0.0)


def test_a_million_sources_take_no_more_room_than_ten_thousand() -> None:
    limit = RateLimit()
    for n in range(MAX_SOURCES + 5_000):
        limit.allow(ip_address(n + (10 << 24)), 0.0)
    assert len(limit._buckets) == MAX_SOURCES
