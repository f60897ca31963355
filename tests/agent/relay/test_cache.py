"""Last-known-good on disk."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from meshagent.agent.relay.cache import DAMAGED, UNSAVED, Cache, decode, encode
from meshagent.protocol.entry import Entry
from meshagent.protocol.types import CDS, LDS
from meshagent.runtime.clock import SystemClock
from tests.agent.recorder import Recorder
from tests.fakes.eventually import eventually

SNAPSHOT = {CDS: {"a": Entry("1", b"\x00body"), "b": Entry("2", b"")}, LDS: {}}
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def cache_at(path: Path, delay: float = 0.0) -> tuple[Cache, Recorder]:
    conditions = Recorder()
    return Cache(path, SystemClock(), conditions, delay=delay), conditions


def test_what_is_saved_comes_back_with_its_age_and_only_root_can_read_it(tmp_path: Path) -> None:
    cache, _ = cache_at(tmp_path / "cache")
    cache.save(lambda: SNAPSHOT)
    cache.flush()
    again, conditions = cache_at(tmp_path / "cache")
    assert again.load() == SNAPSHOT
    assert again.saved_at.value == cache.saved_at.value
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o600
    assert conditions.codes() == []


def test_no_cache_is_no_trouble(tmp_path: Path) -> None:
    cache, conditions = cache_at(tmp_path / "cache")
    assert cache.load() == {}
    assert conditions.codes() == []


WHOLE = encode(SNAPSHOT, NOW)
DAMAGES = {
    "empty": b"",
    "cut in the header": WHOLE[:20],
    "cut in the body": WHOLE[:-1],
    "one bit": WHOLE[:-1] + bytes([WHOLE[-1] ^ 1]),
    "more behind": WHOLE + b"x",
    "another format": WHOLE.replace(b'"format": 1', b'"format": 2'),
    "no JSON": b"garbage\n" + WHOLE,
    "a JSON list": b"[]\n",
    "binary": bytes(range(256)) * 50,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_file_is_set_aside_with_a_condition_and_is_never_half_used(tmp_path: Path, kind: str) -> None:
    (tmp_path / "cache").write_bytes(DAMAGES[kind])
    cache, conditions = cache_at(tmp_path / "cache")
    assert cache.load() == {}
    assert conditions.codes() == [DAMAGED]
    assert not (tmp_path / "cache").exists()
    assert (tmp_path / "cache.set-aside").read_bytes() == DAMAGES[kind]


def test_a_damaged_file_that_was_written_anew_is_no_trouble_any_more(tmp_path: Path) -> None:
    path = tmp_path / "config.cache"
    path.write_bytes(b"nonsense")
    cache, conditions = cache_at(path)
    cache.load()
    assert conditions.codes() == [DAMAGED]
    cache.save(dict)
    cache.flush()
    assert conditions.codes() == []


def test_every_cut_of_the_file_is_noticed() -> None:
    for size in range(len(WHOLE)):
        with pytest.raises(ValueError):
            decode(WHOLE[:size])
    assert decode(WHOLE) == (SNAPSHOT, NOW)


def test_many_changes_are_one_write_and_the_end_writes_what_is_left(tmp_path: Path) -> None:
    async def story() -> None:
        cache, _ = cache_at(tmp_path / "cache", delay=0.05)
        running = asyncio.create_task(cache.run())
        for i in range(100):
            cache.save(lambda i=i: {CDS: {"a": Entry(str(i), b"")}})
        await eventually(lambda: cache.saved_at.value is not None)
        assert cache.saved_at.version == 1
        cache.save(lambda: SNAPSHOT)
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert cache_at(tmp_path / "cache")[0].load() == SNAPSHOT

    asyncio.run(story())


def test_a_disk_that_refuses_is_a_condition_and_the_old_file_stays(tmp_path: Path) -> None:
    cache, conditions = cache_at(tmp_path / "gone" / "cache")
    cache.save(lambda: SNAPSHOT)
    cache.flush()
    assert conditions.codes() == [UNSAVED]
    (tmp_path / "gone").mkdir()
    cache.save(lambda: SNAPSHOT)
    cache.flush()
    assert conditions.codes() == []
