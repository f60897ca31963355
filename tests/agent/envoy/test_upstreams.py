"""Envoy's page of clusters, as 1.40.0 wrote it; what is left out here are lines of the same kinds."""

import pytest

from meshagent.agent.envoy.upstreams import Reading, Upstream

PAGE = b"""\
xds-grpc::observability_name::xds-grpc
xds-grpc::/run/meshagent/xds.sock::cx_active::1
xds-grpc::/run/meshagent/xds.sock::cx_total::1
xds-grpc::/run/meshagent/xds.sock::health_flags::healthy
PassthroughCluster::10.9.9.9:443::cx_total::4
outbound|6379||cache.default.mesh.internal::outlier::success_rate_average::-1
outbound|6379||cache.default.mesh.internal::default_priority::max_connections::4294967295
outbound|6379||cache.default.mesh.internal::added_via_api::true
outbound|6379||cache.default.mesh.internal::10.47.0.12:15008::cx_active::2
outbound|6379||cache.default.mesh.internal::10.47.0.12:15008::cx_connect_fail::0
outbound|6379||cache.default.mesh.internal::10.47.0.12:15008::cx_total::2
outbound|6379||cache.default.mesh.internal::10.47.0.12:15008::rq_active::1
outbound|6379||cache.default.mesh.internal::10.47.0.12:15008::rq_error::0
outbound|6379||cache.default.mesh.internal::10.47.0.12:15008::rq_success::0
outbound|6379||cache.default.mesh.internal::10.47.0.12:15008::rq_total::3
outbound|6379||cache.default.mesh.internal::10.47.0.12:15008::hostname::cache
outbound|6379||cache.default.mesh.internal::10.47.0.12:15008::health_flags::healthy
outbound|6379||cache.default.mesh.internal::10.47.0.12:15008::weight::100
outbound|6379||cache.default.mesh.internal::[fd00::13]:15008::cx_connect_fail::1
outbound|6379||cache.default.mesh.internal::[fd00::13]:15008::cx_total::1
outbound|6379||cache.default.mesh.internal::[fd00::13]:15008::rq_total::0
outbound|6379||cache.default.mesh.internal::[fd00::13]:15008::health_flags::/failed_outlier_check
outbound|80||web.default.mesh.internal::10.47.0.11:15008::cx_total::0
outbound|80||web.default.mesh.internal::10.47.0.11:15008::rq_total::0
outbound|80||web.default.mesh.internal::10.47.0.11:15008::health_flags::healthy
inbound|5432||db.default.mesh.internal::127.0.0.1:5432::cx_total::7
inbound|5432||db.default.mesh.internal::127.0.0.1:5432::health_flags::healthy
"""


def used(page: bytes, size: int = 1 << 16) -> list[Upstream]:
    """Read in pieces of ``size`` bytes."""
    reading = Reading()
    for start in range(0, len(page), size):
        reading.feed(page[start : start + size])
    return reading.used()


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_endpoints_that_were_used_are_told_with_what_is_known_of_them(size: int) -> None:
    cache = "cache.default.mesh.internal"
    numbers = {"cx_active": 2, "cx_total": 2, "rq_active": 1, "rq_total": 3}
    failing = {"cx_connect_fail": 1, "cx_total": 1}
    assert used(PAGE, size) == [
        Upstream("outbound", cache, 6379, "10.47.0.12:15008", True, numbers),
        Upstream("outbound", cache, 6379, "[fd00::13]:15008", False, failing),
        Upstream("inbound", "db.default.mesh.internal", 5432, "127.0.0.1:5432", True, {"cx_total": 7}),
    ]


def test_what_is_no_page_of_envoys_says_nothing() -> None:
    for page in (b"", b"::\n", b"a::b\n", b"outbound|x||h::1.2.3.4:5::cx_total::1\n", b"\xff|\xfe::cx_total::9\n"):
        assert used(page) == []
    assert used(b"outbound|80||h::1.2.3.4:5::cx_total::-3\noutbound|80||h::1.2.3.4:5::rq_total::1x\n") == []


def test_no_page_becomes_more_than_a_collector_can_read() -> None:
    page = b"".join(b"outbound|80||h%d::10.0.0.1:80::cx_total::1\n" % number for number in range(20_000))
    assert len(used(page)) == 10_000
