"""Fixtures for tests on lab hosts."""

from collections.abc import Iterator
from typing import Any

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


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that fails shows what the programs of its fixture's hosts said last; soon they are gone."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed and report.when == "call":
        for value in getattr(item, "funcargs", {}).values():
            lab = getattr(value, "lab", value)
            if isinstance(lab, Lab):
                report.sections += list(lab.told())
