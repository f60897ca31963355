"""The seam for other dialects."""

import asyncio
from pathlib import Path

from meshagent.agent.relay.adapt import identity
from meshagent.agent.relay.cache import Cache
from meshagent.agent.relay.relay import Relay
from meshagent.protocol.entry import Entry
from meshagent.protocol.subscriber import Received
from meshagent.protocol.types import CDS
from meshagent.runtime.clock import SystemClock
from tests.agent.recorder import Recorder
from tests.fakes.envoy_resources import eds_cluster, entry


def test_the_hubs_resources_pass_untouched() -> None:
    original = Entry("1", b"x")
    assert identity(CDS, "a", original) is original


def test_another_dialect_is_adapted_once_per_version_and_keeps_its_versions(tmp_path: Path) -> None:
    calls: list[str] = []

    def adapt(type_url: str, name: str, original: Entry) -> Entry:
        calls.append(name)
        return Entry(original.version, original.body + b"")

    async def story() -> None:
        conditions = Recorder()
        relay = Relay(Cache(tmp_path / "c", SystemClock(), conditions), conditions, adapt=adapt)
        a, b = entry(eds_cluster("a")), entry(eds_cluster("b"))
        await relay.offer(Received(CDS, "1", {"a": a}, (), {}))
        await relay.offer(Received(CDS, "2", {"b": b}, (), {}))
        assert calls == ["a", "b"]
        assert {n: e.version for n, e in relay.snapshot.value[CDS].items()} == {"a": a.version, "b": b.version}

    asyncio.run(story())
