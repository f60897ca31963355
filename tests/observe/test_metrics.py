"""Metrics are listed once, counted here, and written as Prometheus reads them."""

import re
import threading

import pytest

from meshagent.observe import metrics
from meshagent.observe.metrics import Kind, Metrics


def test_every_metric_is_named_by_the_rules() -> None:
    assert len({metric.name for metric in metrics.ALL}) == len(metrics.ALL) > 10
    for metric in metrics.ALL:
        assert re.fullmatch(r"meshagent_[a-z_]+", metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER), metric.name
        assert metric.help


def test_samples_are_written_with_help_type_and_escaped_labels() -> None:
    values = Metrics()
    values.add(metrics.DNS_QUERIES, answered_by="mesh")
    values.add(metrics.DNS_QUERIES, 2, answered_by="mesh")
    values.set(metrics.SERVICE_HEALTHY, 1, service='a"b\\c\nd')
    assert values.exposition().splitlines() == [
        "# HELP meshagent_dns_queries_total UDP questions by who answered",
        "# TYPE meshagent_dns_queries_total counter",
        'meshagent_dns_queries_total{answered_by="mesh"} 3',
        "# HELP meshagent_service_healthy 1 while the service's check passes",
        "# TYPE meshagent_service_healthy gauge",
        'meshagent_service_healthy{service="a\\"b\\\\c\\nd"} 1',
    ]


def test_a_time_keeps_its_digits_and_a_removed_sample_is_gone() -> None:
    values = Metrics()
    values.set(metrics.CERTIFICATE_EXPIRY, 1_790_000_000.25)
    assert "meshagent_certificate_expiry_timestamp_seconds 1790000000.25\n" in values.exposition()
    values.remove(metrics.CERTIFICATE_EXPIRY)
    assert values.exposition() == ""


@pytest.mark.parametrize("labels", [{}, {"outcome": "ok"}, {"answered_by": "ok", "more": "x"}])
def test_wrong_labels_are_an_error(labels: dict[str, str]) -> None:
    with pytest.raises(KeyError, match="has the labels"):
        Metrics().add(metrics.DNS_QUERIES, **labels)  # type: ignore[arg-type]


def test_counting_from_many_threads_loses_nothing() -> None:
    values = Metrics()

    def count() -> None:
        for _ in range(2000):
            values.add(metrics.GUARD_HEALS)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values.value(metrics.GUARD_HEALS) == 16000
