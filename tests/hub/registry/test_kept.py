"""What a host announced reads back as it was said, and since when it serves what."""

from hypothesis import given
from hypothesis import strategies as st

from meshagent.hub.registry.kept import MAX_NAMES, Kept, first_seen, from_bytes, to_bytes
from meshagent.protocol.announce import announcement_message
from tests.hub.hosts import announced, announced_service


def test_an_announcement_reads_back_without_its_generation() -> None:
    said = announced(announced_service(labels=(("a", "b"),), healthy=False), generation=7, locality="eu/dc1")
    kept = to_bytes(Kept(said, {"cache.default.mesh.internal": 12.5}))
    read = from_bytes(kept)
    assert read.announced is not None and read.since == {"cache.default.mesh.internal": 12.5}
    assert read.announced.services == said.services and read.announced.locality == "eu/dc1"
    assert read.announced.generation == 0 and to_bytes(read) == kept


def test_an_announcement_kept_by_an_older_hub_still_reads() -> None:
    old = announcement_message(announced(announced_service(), generation=0)).SerializeToString()
    read = from_bytes(old)
    assert read.announced is not None and len(read.announced.services) == 1 and read.since == {}


def test_a_host_that_said_goodbye_keeps_its_place() -> None:
    assert from_bytes(to_bytes(Kept(None, {"a": 1.0}))) == Kept(None, {"a": 1.0})
    assert to_bytes(Kept()) == b""


def test_a_place_is_kept_while_the_name_is_not_served_and_the_oldest_unused_go_first() -> None:
    assert first_seen({"a": 1.0}, frozenset("b"), 2.0) == {"a": 1.0, "b": 2.0}
    assert first_seen({"a": 1.0}, frozenset("a"), 2.0) == {"a": 1.0}
    many = {f"n{i}": float(i) for i in range(MAX_NAMES)}
    grown = first_seen(many, frozenset(["n0", "new"]), 9999.0)
    assert len(grown) == MAX_NAMES and "n0" in grown and "n1" not in grown and grown["new"] == 9999.0


@given(st.binary(max_size=200))
def test_damaged_bytes_are_nothing_and_never_an_error(damaged: bytes) -> None:
    from_bytes(damaged)
    from_bytes(b"\0" + damaged)
    assert from_bytes(b"") == Kept()
