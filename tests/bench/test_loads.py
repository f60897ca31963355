"""The outputs are those of wrk 4.1.0, redis-benchmark 7.0.15, iperf3 3.12 and dnsperf 2.10."""

import pytest

from tests.bench import loads
from tests.bench.loads import UnreadableError

WRK = """Running 1s test @ http://10.0.0.1:8000/
  1 threads and 32 connections
  Latency Distribution
     50%  611.00us
     75%    1.02ms
  58093 requests in 1.00s, 23.60MB read
Requests/sec:  58040.12
Transfer/sec:     23.58MB
"""
REDIS = """"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms"
"GET","30503.05","0.976","0.280","0.999"
"""
DNSPERF = """Statistics:
  Queries sent:         66501
  Queries lost:         0 (0.00%)
  Queries per second:   33250.349504
"""


def test_rate_and_median_are_read_from_wrk() -> None:
    rate, half = loads.read_wrk(WRK)
    assert rate == 58040.12 and half == pytest.approx(0.000611)


@pytest.mark.parametrize(
    "trouble",
    ["  Socket errors: connect 0, read 7, write 0, timeout 0\n", "  Non-2xx or 3xx responses: 12\n"],
)
def test_a_run_with_errors_is_no_result(trouble: str) -> None:
    with pytest.raises(UnreadableError):
        loads.read_wrk(WRK.replace("Requests/sec", trouble + "Requests/sec"))


def test_rate_and_median_are_read_from_redis_benchmark() -> None:
    rate, half = loads.read_redis_benchmark(REDIS)
    assert rate == 30503.05 and half == pytest.approx(0.000999)


def test_what_arrived_is_read_from_iperf() -> None:
    assert loads.read_iperf('{"end": {"sum_received": {"bits_per_second": 7.1e9}}}') == 7100.0


def test_an_iperf_that_failed_is_no_result() -> None:
    with pytest.raises(UnreadableError):
        loads.read_iperf('{"error": "the server is busy"}')


def test_answers_per_second_are_read_from_dnsperf_unless_many_were_lost() -> None:
    assert loads.read_dnsperf(DNSPERF) == pytest.approx(33250.349504)
    with pytest.raises(UnreadableError):
        loads.read_dnsperf(DNSPERF.replace("0 (0.00%)", "5000 (7.52%)"))
