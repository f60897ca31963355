"""A way to the hub that swallows every packet and says nothing: noticed, told, and taken up again when it is back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.lab import wait_until
from meshagent.lab.waiting import patience
from tests.lab.mesh import Mesh, open_web_and_cache, took

pytestmark = [pytest.mark.root, pytest.mark.long]

#: A stranger's table: packets of the hub's port are dropped in both directions, and nobody gets an error.
_DROP = """table inet lost {
 chain out { type filter hook output priority -300; tcp dport 15012 drop; }
 chain in { type filter hook input priority -300; tcp sport 15012 drop; }
}
"""


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_web_and_cache() as opened:
        yield opened


def test_a_half_open_connection_to_the_hub_is_noticed_within_15_s_and_replaced_when_the_way_is_back(mesh: Mesh) -> None:
    """A ping every 5 s, 5 s to answer: 10 s at most; a busy machine adds its own."""
    web = mesh.members["web"]
    with mesh.busy(web, "cache") as busy:
        web.run(["nft", "-f", "-"], input=_DROP)
        seconds = took(
            lambda: wait_until(lambda: not mesh.status(web)["control_plane"]["connected"], 60, "noticed", 0.1)
        )
        assert seconds < 10 + 5 * patience()
        assert mesh.redis(web, "cache") == "PONG"
        web.run(["nft", "delete", "table", "inet", "lost"])
        wait_until(lambda: mesh.status(web)["control_plane"]["connected"], 60, "connected again")
        mesh.settle(60)
        busy.goes_on()
