"""Fixtures for tests on lab hosts."""

from collections.abc import Iterator

import pytest

from meshagent.lab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """An empty lab with IPv4 and IPv6, gone after the test."""
    with Lab() as opened:
        yield opened


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def lab_of_one_family(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """An empty lab that has only IPv4, then one that has only IPv6."""
    with Lab(families=(request.param,)) as opened:
        yield opened
