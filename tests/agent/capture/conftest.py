"""The stand of the kernel tests: one lab per module, a captured host for each test."""

from collections.abc import Iterator

import pytest

from meshagent.lab import Lab
from tests.agent.capture.stand import Stand, make_stand


@pytest.fixture(scope="module")
def capture_lab() -> Iterator[Lab]:
    with Lab() as opened:
        yield opened


@pytest.fixture(params=["nft", "iptables"])
def backend(request: pytest.FixtureRequest) -> str:
    """The case table holds for both."""
    return str(request.param)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def stand(request: pytest.FixtureRequest, capture_lab: Lab, backend: str) -> Iterator[Stand]:
    """A captured host and a peer; the test runs once for each address family and backend."""
    with make_stand(capture_lab, request.param, backend) as made:
        yield made


@pytest.fixture
def stand4(capture_lab: Lab, backend: str) -> Iterator[Stand]:
    """For what doesn't depend on the family."""
    with make_stand(capture_lab, 4, backend) as made:
        yield made


#: Rows that go the same ways over IPv6 as over IPv4 with legacy iptables; the long suite runs both.
_IPV6_LATER = {"test_chains_arriving.py", "test_chains_bridges.py", "test_chains_redirected.py"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in _IPV6_LATER and "iptables" in item.name and "ipv6" in item.name:
            item.add_marker(pytest.mark.long)
