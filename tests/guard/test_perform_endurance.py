"""Replacing rules again and again: not one connection leaks, nothing grows. Short here, long in the nightly run."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshagent.guard.elements import Change
from meshagent.guard.state import Ruleset
from meshagent.lab import Lab
from tests.guard.callers import Callers, answering
from tests.guard.conftest import CLOSED, RULES, TABLE, UNOWNED, Guarded

pytestmark = pytest.mark.root

REPLACES = pytest.param(150, id="short"), pytest.param(2_000, id="long", marks=pytest.mark.long)
APPLIES = pytest.param(250, id="short"), pytest.param(10_000, id="long", marks=pytest.mark.long)


def variants(rules: Ruleset, address: str, port: int) -> list[Ruleset]:
    """Other rules, other addresses: each replaces all that is in the table."""
    key = bytes(map(int, address.split("."))) + port.to_bytes(2, "big")
    more = TABLE.replace("\tchain around {", "\tchain more {\n\t\tcounter\n\t}\n\tchain around {")
    many = b"".join(sorted({key, *(bytes((10, 98, n // 250, n % 250 + 1, 0, 80)) for n in range(500))}))
    return [
        replace(rules, sets={"claimed4": key}, digest="a"),
        replace(rules, rules=more, sets={"claimed4": key}, digest="b"),
        replace(rules, sets={"claimed4": many}, digest="c"),
    ]


@pytest.mark.parametrize(
    ("kind", "policies"), [("guarded", (RULES, CLOSED)), ("owning", (UNOWNED,))], ids=["kept-policy-changes", "nobodys"]
)
@pytest.mark.parametrize("replaces", REPLACES)
def test_no_connection_leaks_or_fails_while_rules_are_replaced(
    guard_lab: Lab, kind: str, policies: tuple[Ruleset, ...], replaces: int, request: pytest.FixtureRequest
) -> None:
    guarded: Guarded = request.getfixturevalue(kind)
    peer = guard_lab.host(f"peer-{len(guard_lab.hosts)}")
    servers = [answering(peer, "0.0.0.0", 80, "direct"), answering(guarded.host, "127.0.0.1", 15001, "proxy")]
    by_policy = [variants(rules, peer.address4, 80) for rules in policies]
    wanted = [ruleset for rulesets in zip(*by_policy, strict=True) for ruleset in rulesets]
    guarded.client.apply(wanted[0])
    callers = Callers(guarded.host, peer.address4, 80, threads=2)
    callers.more(20)
    for _, ruleset in zip(range(replaces), itertools.cycle(wanted[1:] + wanted[:1]), strict=False):
        guarded.client.apply(ruleset)
    callers.more(20)
    answers = callers.stop()
    assert set(answers) == {"proxy"}, answers
    for server in servers:
        server.stop()


@pytest.fixture
def sizes(guarded: Guarded) -> Iterator[list[tuple[int, int]]]:
    """(KiB resident, descriptors) of the guard: first and last are compared at the end."""
    found: list[tuple[int, int]] = []
    yield found
    (memory, descriptors), (memory_after, descriptors_after) = found[0], found[-1]
    assert descriptors_after <= descriptors
    assert memory_after - memory < 1024


def size(guarded: Guarded) -> tuple[int, int]:
    process = Path(f"/proc/{guarded.program.pid}")
    return int((process / "statm").read_text().split()[1]) * 4, len(list((process / "fd").iterdir()))


@pytest.mark.parametrize(
    "applies",
    [
        pytest.param(500, id="short"),
        # 40,000 requests: longer than what counts as a hang elsewhere
        pytest.param(10_000, id="long", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_the_guard_does_not_grow(guarded: Guarded, sizes: list[tuple[int, int]], applies: int) -> None:
    key = bytes((10, 99, 0, 9, 0, 80))
    owners = [variants(rules, "10.99.0.1", 80) for rules in (RULES, UNOWNED)]
    for number in range(200 + applies):
        if number == 200:  # the allocator has its arenas by then
            sizes.append(size(guarded))
        ruleset = owners[number // 3 % 2][number % 3]
        guarded.client.apply(ruleset)
        guarded.client.update({"claimed4": Change(add=key)}, ruleset.digest, "more")
        guarded.client.bypass("proxy", "test")
        guarded.client.recapture("proxy")
    guarded.client.state()
    sizes.append(size(guarded))
