"""Other programs that own the host's firewall: whatever they do, capture stays or is back, and theirs is theirs.

Each manager does the same on a host without us; what it made there and what it made beside us must be equal.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from meshagent.config.settings import CaptureConfig, FailurePolicy
from meshagent.lab import Host, Lab, wait_until
from meshagent.model.posture import Posture
from tests.agent.capture.stand import VIRTUAL, Stand, make_stand, mesh, service
from tests.lab import firewalls
from tests.lab.firewalls import Firewalld, Step
from tests.lab.mesh import open_mesh, took

#: Real programs by the dozen: 15 s of a quiet machine, and nothing that may hang for long.
pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

MANAGERS: dict[str, Callable[[Host], list[Step]]] = {
    "ufw": firewalls.ufw,
    "firewalld": lambda host: Firewalld(host, "nftables").steps(),
    "firewalld-iptables": lambda host: Firewalld(host, "iptables").steps(),
    "nftables-service": firewalls.nftables_service,
    "by-hand": firewalls.by_hand,
}
#: As on this kernel, where nobody else can touch the table; and as on one before 6.9 with policy closed: the table must
#: outlive the guard, so anybody can flush it.
POLICIES = {"owned": FailurePolicy.OPEN, "unowned": FailurePolicy.CLOSED}
WITHOUT = {"owned": "", "unowned": "persist"}


@pytest.fixture(scope="module")
def manager_lab() -> Iterator[Lab]:
    with Lab() as opened:
        yield opened


@pytest.fixture
def stand(manager_lab: Lab, policy: str) -> Iterator[Stand]:
    """A host that is captured over both families."""
    with make_stand(manager_lab, 4, without=WITHOUT[policy]) as made:
        for address in ("127.0.0.1", "::1"):
            made.serve(made.host, 15001, "proxy", address)
        yield made


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def capture(stand: Stand, policy: FailurePolicy, *more: int) -> None:
    addresses = [mesh(VIRTUAL[family], 80) for family in (4, 6)] + [mesh(VIRTUAL[4], port) for port in more]
    stand.capture(
        Posture.PERMISSIVE,
        *addresses,
        services=(service("web", 8080),),
        config=CaptureConfig(on_proxy_failure=policy),
        capture_dns=True,
    )


def ours(stand: Stand) -> str:
    """Our two tables; empty or in part while somebody has removed them."""
    tables = (stand.host.run(["nft", "-s", "list", "table", "inet", name], check=False).stdout for name in TABLES)
    return "".join(tables)


TABLES = ("meshagent", "meshagent_anchor")


def captures(stand: Stand) -> bool:
    return all(stand.dial(VIRTUAL[family], 80).startswith("proxy ") for family in (4, 6))


#: One run of a slow manager takes 10 s, and most of what it does is the same to every table of ours.
SLOW = [("ufw", "owned"), ("firewalld", "owned"), ("firewalld-iptables", "owned"), ("firewalld-iptables", "unowned")]


@pytest.mark.parametrize(
    ("manager", "policy"),
    [
        pytest.param(manager, policy, marks=[pytest.mark.long] if (manager, policy) in SLOW else [])
        for manager in MANAGERS
        for policy in POLICIES
    ],
)
def test_capture_stays_or_is_back_at_once_and_their_rules_are_what_they_would_be_without_us(
    stand: Stand, pool: ThreadPoolExecutor, manager: str, policy: str
) -> None:
    capture(stand, POLICIES[policy])
    wanted, waits = ours(stand), []
    control = MANAGERS[manager](stand.peer)
    for (name, step), (_, step_there) in zip(MANAGERS[manager](stand.host), control, strict=True):
        there = pool.submit(step_there)
        step()
        waits.append(took(lambda name=name: wait_until(lambda: ours(stand) == wanted, 20, f"our tables after: {name}")))  # type: ignore[misc]
        assert captures(stand), name
        there.result()
        assert firewalls.theirs(stand.host) == firewalls.theirs(stand.peer), name
        disturb(stand, POLICIES[policy], name)
    assert sorted(waits)[len(waits) // 2] < 1, waits  # one step on a busy machine may take longer


def disturb(stand: Stand, policy: FailurePolicy, after: str) -> None:
    """All that we do to the kernel, with theirs as it is now."""
    before = firewalls.theirs(stand.host, counted=True)
    capture(stand, policy, 81)  # elements of a set
    stand.capture(Posture.OBSERVE, draining=True)
    stand.remove()
    assert not ours(stand), after
    firewalls.require_undisturbed(before, firewalls.theirs(stand.host, counted=True))
    capture(stand, policy)


def test_status_and_log_name_who_took_our_rules_away(envoy: Path) -> None:
    with open_mesh((4,)) as mesh:
        web = mesh.lab.host("web")
        config = web.root / "etc/meshagent/agent.yaml"
        config.parent.mkdir(parents=True)
        config.write_text("capture: {on_proxy_failure: closed}\n")
        mesh.join_all((web, []))
        assert mesh.status(web)["capture"]["restored"] is None
        web.run(["nft", "flush", "ruleset"])
        restored = wait_until(lambda: mesh.status(web)["capture"]["restored"], 10)
        assert (restored["name"], restored["what"]) == ("nft", "anchor removed")
        assert f"after nft (pid {restored['pid']}): anchor removed" in web.meshagent("status").stdout
        assert f'restored pid={restored["pid"]} name=nft what="anchor removed"' in mesh.agents["web"].text()
