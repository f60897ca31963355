"""Refusals as they are kept for people."""

from datetime import UTC, datetime

from meshagent.hub.discovery.rejections import MAX_PER_HOST, MAX_REASON, Rejections
from meshagent.protocol.publisher import Verdict
from meshagent.protocol.types import LDS

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_reason_that_names_nothing_refuses_everything_in_the_response() -> None:
    kept = Rejections()
    kept.heard("web", Verdict(LDS, "1", {"a": "1", "b": "2"}, (), error="no idea"), NOW)
    assert [r.resource for r in kept.of("web")] == ["a", "b"]


def test_a_host_that_refuses_thousands_costs_little_memory() -> None:
    kept = Rejections()
    many = {f"name{n}": "v" for n in range(1_000)}
    kept.heard("web", Verdict(LDS, "1", many, (), error="x" * 100_000), NOW)
    assert len(kept.of("web")) == MAX_PER_HOST and all(len(r.reason) <= MAX_REASON for r in kept.of("web"))


def test_an_ack_says_nothing_of_other_resources() -> None:
    kept = Rejections()
    kept.heard("web", Verdict(LDS, "1", {"a": "1"}, (), error="a is wrong"), NOW)
    kept.heard("web", Verdict(LDS, "2", {"b": "1"}, ()), NOW)
    assert [r.resource for r in kept.of("web")] == ["a"]
    kept.forget("web")
    assert kept.hosts() == ()
