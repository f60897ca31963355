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
    values.add(metrics.ROTATIONS, result="ok")
    values.add(metrics.ROTATIONS, 2, result="ok")
    values.set(metrics.SERVICE_HEALTHY, 1, service='a"b\\c\nd')
    assert values.exposition().splitlines() == [
        "# HELP meshagent_certificate_rotations_total Tries to renew the certificate",
        "# TYPE meshagent_certificate_rotations_total counter",
        'meshagent_certificate_rotations_total{result="ok"} 3',
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


@pytest.mark.parametrize("labels", [{}, {"outcome": "ok"}, {"result": "ok", "more": "x"}])
def test_wrong_labels_are_an_error(labels: dict[str, str]) -> None:
    with pytest.raises(KeyError, match="has the labels"):
        Metrics().add(metrics.ROTATIONS, **labels)  # type: ignore[arg-type]


def test_counting_from_many_threads_loses_nothing() -> None:
    values = Metrics()

    def count() -> None:
        for _ in range(2000):
            values.add(metrics.CONTROL_PLANE_SESSIONS)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values.value(metrics.CONTROL_PLANE_SESSIONS) == 16000
