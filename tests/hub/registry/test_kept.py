"""What a host announced reads back as it was said."""

from hypothesis import given
from hypothesis import strategies as st

from meshagent.hub.registry.kept import from_bytes, to_bytes
from tests.hub.hosts import announced, announced_service


def test_an_announcement_reads_back_without_its_generation() -> None:
    said = announced(announced_service(labels=(("a", "b"),), healthy=False), generation=7, locality="eu/dc1")
    read = from_bytes(to_bytes(said))
    assert read is not None and read.services == said.services and read.locality == "eu/dc1" and read.generation == 0
    assert to_bytes(said) == to_bytes(read)


@given(st.binary(max_size=200))
def test_damaged_bytes_are_nothing_and_never_an_error(damaged: bytes) -> None:
    from_bytes(damaged)
    assert from_bytes(b"") is None
