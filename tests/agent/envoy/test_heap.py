"""How much memory the proxy may use."""

import pytest

from meshagent.agent.envoy.heap import heap_limit

GB, MB = 1 << 30, 1 << 20


@pytest.mark.parametrize(
    ("configured", "cgroup", "host", "limit"),
    [
        (512 * MB, 256 * MB, 8 * GB, 512 * MB),  # who wrote it knows why
        (0, 400 * MB, 8 * GB, 300 * MB),
        (0, None, 8 * GB, 2 * GB),
        (0, 16 * GB, 8 * GB, 2 * GB),  # a limit above the host's memory is none
        (0, None, 512 * MB, 256 * MB),
        (0, None, 256 * MB, 192 * MB),
    ],
)
def test_the_limit_is_the_written_one_else_most_of_the_cgroups_else_a_quarter_of_the_hosts(
    configured: int, cgroup: int | None, host: int, limit: int
) -> None:
    assert heap_limit(configured, cgroup, host) == limit
