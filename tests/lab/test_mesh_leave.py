"""A host is given back byte for byte, whatever of others is on it and whatever state ours is in when it leaves."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from meshagent.lab import Host, recipes, wait_until
from meshagent.lab.snapshot import diff
from meshagent.lab.waiting import NotInTimeError
from tests.lab.mesh import Mesh, open_mesh

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800), pytest.mark.xdist_group("leave-foreign")]

REPOSITORY = Path(__file__).resolve().parents[2]

#: Rules of fifteen years: nft tables of any family, a native ``ip nat``, both kinds of iptables, routes and ip rules;
#: some with names and numbers as near to ours as they can be.
THEIRS = """
nft add table ip nat
nft add chain ip nat prerouting '{ type nat hook prerouting priority -100; }'
nft add chain ip nat output '{ type nat hook output priority -100; }'
nft add rule ip nat prerouting tcp dport 8080 counter redirect to :80
nft add rule ip nat output ip daddr 127.0.0.9 tcp dport 80 counter redirect to :8080
nft add table inet meshagent2
nft add set inet meshagent2 virtual4 '{ type ipv4_addr; }'
nft add element inet meshagent2 virtual4 '{ 240.240.0.7 }'
nft add table ip meshagent
nft add chain ip meshagent output '{ type filter hook output priority 0; }'
nft add rule ip meshagent output ip daddr 240.240.0.7 counter accept
nft add table bridge theirs
iptables-legacy -A INPUT -p tcp --dport 23 -j DROP
iptables-legacy -t mangle -A PREROUTING -p tcp --dport 24 -j MARK --set-mark 7
ip6tables-legacy -A INPUT -p tcp --dport 23 -j DROP
iptables-nft -A INPUT -p tcp --dport 25 -m comment --comment 'not ours: meshagent' -j ACCEPT
ip rule add fwmark 0x7 lookup 28002 priority 28002
ip rule add to 192.0.2.0/24 lookup 28001 priority 99
ip route add local 192.0.2.77/32 dev lo table 28001 proto static
ip route add 192.0.2.0/24 dev lo table 28002
ip route add blackhole 240.241.0.0/16 proto 108
"""

#: The same tables as a version long ago might have written them, and what it left beside them.
OLDER = """
nft -f - <<'END'
table inet meshagent {
 set old { type ipv4_addr . inet_service; elements = { 240.240.0.9 . 80 }; }
 chain old_output {
  type nat hook output priority -100; policy accept;
  ip daddr . tcp dport @old counter redirect to :15001 comment "from another time"
 }
}
table inet meshagent_anchor {
 chain other_name {
  type nat hook output priority -90; policy accept;
  ip daddr 192.0.2.1 tcp dport 1 redirect to :1
 }
}
END
ip route add 240.250.0.0/16 dev lo proto 109
ip rule add fwmark 0x6d610001 lookup 28001 priority 28003 protocol 109
"""


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    with open_mesh((4,)) as opened:
        web, cache = opened.lab.host("web"), opened.lab.host("cache")
        recipes.redis(cache)
        web.run(["sh", "-ec", THEIRS])
        opened.before["web"] = web.snapshot()
        opened.join_all((cache, [("cache", 6379, "redis")]))
        yield opened


def captured(mesh: Mesh, web: Host) -> None:
    wait_until(lambda: mesh.redis(web, "cache") == "PONG", 30)


def switched_off(mesh: Mesh, web: Host) -> None:
    web.meshagent("capture", "off")


def rolled_back(mesh: Mesh, web: Host) -> None:
    web.meshagent("posture", "outbound", "--confirm", "1")
    wait_until(lambda: "rolled-back" in mesh.conditions(web), 30)


def on_trial(mesh: Mesh, web: Host) -> None:
    web.meshagent("posture", "outbound", "--confirm", "600")


def agent_dead(mesh: Mesh, web: Host) -> None:
    mesh.agents["web"].kill()


def guard_dead(mesh: Mesh, web: Host) -> None:
    mesh.agents["web"].kill()
    for pid in web.processes():
        if b"meshagent.guard" in Path(f"/proc/{pid}/cmdline").read_bytes():
            web.run(["kill", "-9", str(pid)])
    wait_until(lambda: nobodys(web), 30)


def nobodys(web: Host) -> bool:
    """The table outlived its guard, without an owner: the kernel gives it to the next one who asks."""
    shown = web.run(["nft", "list", "table", "inet", "meshagent"])
    return "chain" in shown.stdout and "owner" not in shown.stdout


def older(mesh: Mesh, web: Host) -> None:
    """As a reboot into an older version left it: that one never knew tables that are kept."""
    guard_dead(mesh, web)
    web.run(["sh", "-ec", f"nft delete table inet meshagent; nft delete table inet meshagent_anchor{OLDER}"])


def upgraded(mesh: Mesh, web: Host) -> None:
    """An older version's rules are there when this one comes up; it takes their place, and nobody else's."""
    older(mesh, web)
    mesh.start(web)
    captured(mesh, web)
    assert "from another time" not in web.run(["nft", "list", "ruleset"]).stdout


def older_and_never_started(mesh: Mesh, web: Host) -> None:
    """Downgraded, or upgraded and never started: leave alone finds an older version's rules."""
    older(mesh, web)


State = Callable[[Mesh, Host], None]


def states(often: Sequence[State], seldom: Sequence[State]) -> list[Any]:
    """``seldom`` ones are also met by other tests, without anybody else's rules: the long suite has them."""
    rare = [pytest.param(state, marks=pytest.mark.long, id=state.__name__) for state in seldom]
    return [*(pytest.param(state, id=state.__name__) for state in often), *rare]


@pytest.fixture
def web(mesh: Mesh) -> Iterator[Host]:
    host = mesh.lab.hosts["web"]
    join(mesh, host)
    yield host
    host.meshagent("leave", "--drain", "0", "--purge", "--accept", "mesh-in-use", check=False)


def join(mesh: Mesh, host: Host) -> None:
    mesh.join(host)
    mesh.settle()


def left(mesh: Mesh, host: Host) -> None:
    """Out of the mesh's books, and as it was before."""
    del mesh.members["web"], mesh.offers["web"]
    with contextlib.suppress(NotInTimeError):
        wait_until(lambda: not mesh.left_over(host), 10)
    assert diff(mesh.before["web"], host.snapshot()) == []


def counters(host: Host) -> str:
    """Somebody else's counters: a table that was read and written back would start again at 0."""
    return host.run(["nft", "list", "chain", "ip", "nat", "output"]).stdout


@pytest.mark.parametrize(
    "state",
    states(
        (rolled_back, guard_dead, upgraded, older_and_never_started), (captured, switched_off, on_trial, agent_dead)
    ),
)
def test_beside_rules_of_others_and_in_every_state_a_host_is_given_back(mesh: Mesh, web: Host, state: State) -> None:
    with contextlib.suppress(OSError):
        web.connect("127.0.0.9", 80, timeout=1)
    before = counters(web)
    assert "packets 0" not in before
    state(mesh, web)
    answer = web.meshagent_json("leave", "--drain", "0", "--purge")
    assert answer["was_enrolled"] and answer["warnings"] == []
    assert counters(web) == before
    left(mesh, web)


def killed(host: Host, number: int) -> list[str]:
    """``leave`` killed before its change ``number`` (0: not at all); the changes it came to."""
    log = host.private / "events"
    argv = [sys.executable, "-m", "tests.agent.crashing", str(number), str(log), "--root", str(host.root)]
    done = host.run([*argv, "leave", "--drain", "0", "--purge"], cwd=str(REPOSITORY), check=False, timeout=60)
    assert done.returncode in (0, -signal.SIGKILL, 137), done.stderr
    return log.read_text().splitlines()


@pytest.mark.parametrize(
    ("state", "everywhere"),
    [
        pytest.param(switched_off, False, id="switched_off-somewhere"),
        *(
            pytest.param(state, True, id=f"{state.__name__}-everywhere", marks=pytest.mark.long)
            for state in (switched_off, captured, rolled_back)
        ),
    ],
)
def test_leave_killed_at_any_change_in_any_state_is_finished_by_running_it_again(
    mesh: Mesh, web: Host, state: State, everywhere: bool
) -> None:
    state(mesh, web)
    events = killed(web, 0)
    left(mesh, web)
    points = range(1, len(events) + 1) if everywhere else [len(events) // 3]
    for number in points:
        join(mesh, web)
        state(mesh, web)
        killed(web, number)
        done = web.meshagent("leave", "--drain", "0", "--purge", check=False)
        assert done.returncode == 0, done.stderr
        left(mesh, web)
