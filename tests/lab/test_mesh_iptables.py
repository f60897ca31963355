"""A mesh on hosts that capture with legacy iptables: the same story as with nftables, told once from end to end."""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from meshagent.lab import Host, recipes, wait_until
from meshagent.lab.waiting import NotInTimeError
from tests.lab.mesh import Connecting, Mesh, open_mesh
from tests.lab.test_mesh_leave import killed

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("iptables")]

TABLES = ("raw", "mangle", "filter", "nat")
THEIRS = "-A INPUT -p tcp -m tcp --dport 9 -m comment --comment theirs -j DROP"


@pytest.fixture(scope="module")
def mesh(envoy: Path) -> Iterator[Mesh]:
    """``web`` and ``cache``, both told to use iptables, with a rule of somebody else's in tables that exist already."""
    with open_mesh() as opened:
        web, cache = opened.lab.host("web"), opened.lab.host("cache")
        recipes.redis(cache)
        for host in (web, cache):
            for program in ("iptables-legacy", "ip6tables-legacy"):
                for table in TABLES:  # loading a table makes its chains; the kernel keeps them until it ends
                    host.run([program, "-t", table, "-S"])
                host.run([program, *THEIRS.split()])
            (host.root / "etc").mkdir()
            opened.before[host.name] = host.snapshot()
            path = host.root / "etc/meshagent/agent.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"labels: {{app: {host.name}}}\ncapture: {{backend: iptables}}\n")
        opened.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        opened.hub.meshagent("hub", "apply", "-f", "-", input=CLAIM.format(address=cache.address4))
        wait_until(lambda: any(f"-d {cache.address4}/32" in line for line in saved(web)), 10, "the literal claimed")
        yield opened


CLAIM = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: old, namespace: default}}
spec:
  hosts: [old.default.mesh.internal]
  location: MESH_INTERNAL
  resolution: STATIC
  addresses: ["{address}"]
  ports: [{{number: 6379, name: redis, protocol: TCP}}]
  workloadSelector: {{labels: {{app: cache}}}}
"""


#: What a script that knows only its own rules loads.
EMPTY = "".join(
    f"*{table}\n" + "".join(f":{chain} ACCEPT [0:0]\n" for chain in chains) + "COMMIT\n"
    for table, chains in (("filter", ("INPUT", "FORWARD", "OUTPUT")), ("nat", ("PREROUTING", "OUTPUT")))
)


def saved(host: Host) -> list[str]:
    """All legacy rules of both families, without counters."""
    text = "".join(host.run([f"{word}-legacy-save"]).stdout for word in ("iptables", "ip6tables"))
    return [re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines() if not line.startswith("#")]


def captures(host: Host) -> bool:
    return any("-j REDIRECT --to-ports 15001" in line for line in saved(host))


def test_the_mesh_works_and_everybody_says_that_iptables_captures(mesh: Mesh) -> None:
    web = mesh.members["web"]
    assert mesh.redis(web, "cache") == "PONG"
    assert mesh.status(web)["capture"]["backend"] == "iptables" and mesh.conditions(web) == []
    assert captures(web) and web.run(["nft", "list", "tables"]).stdout == ""

    shown = web.meshagent_json("capture", "show")
    assert {"chain": "to_proxy", "reason": "to the proxy"}.items() <= next(
        row for row in shown["counters"] if row["packets"] and row["chain"] == "to_proxy"
    ).items()
    assert web.meshagent_json("capture", "verify") == {"in_sync": True, "differences": []}
    plan = web.meshagent_json("plan")
    assert "*nat" in plan["rules"] and any("the rules stay if the guard is killed" in text for text in plan["warnings"])


def test_a_plain_caller_is_counted_by_its_address(mesh: Mesh) -> None:
    cache, hub = mesh.members["cache"], mesh.hub
    for _ in range(3):
        hub.connect(cache.address4, 6379).close()
    found = wait_until(lambda: mesh.status(cache)["plaintext_callers"], 5, "the caller")
    assert [(caller["address"], caller["count"]) for caller in found] == [(hub.address4, 3)]
    assert found[0]["last_seen"]


def test_what_another_program_flushes_is_back_and_nobody_notices(mesh: Mesh) -> None:
    web = mesh.members["web"]
    before = saved(web)
    with mesh.busy(web, "cache") as busy:
        for program, words, text in (("", ["-F"], ""), ("", ["-t", "nat", "-F"], ""), ("-restore", [], EMPTY)):
            web.run([f"iptables-legacy{program}", "-w", "5", *words], input=text)
            wait_until(lambda: [line for line in saved(web) if "theirs" not in line] == _ours(before), 20, "healing")
            busy.goes_on()
        web.run(["iptables-legacy", "-w", "5", *THEIRS.split()])
    wait_until(lambda: mesh.status(web)["capture"]["in_sync"], 5)
    assert mesh.redis(web, "cache") == "PONG"


def _ours(lines: list[str]) -> list[str]:
    """IPv4's rule of somebody else went with the flush; IPv6's is left out of the comparison with it."""
    return [line for line in lines if "theirs" not in line]


def test_a_killed_proxy_is_replaced_and_a_literal_address_goes_around_it(mesh: Mesh) -> None:
    web, cache = mesh.members["web"], mesh.members["cache"]
    before = mesh.status(web)["capture"]["around_proxy"]
    proxied = mesh.status(web)["proxy"]
    with Connecting(web, cache.address4) as literal:
        os.kill(proxied["pid"], signal.SIGKILL)
        wait_until(lambda: mesh.status(web)["proxy"]["restarts"] > proxied["restarts"], 10)
        wait_until(lambda: mesh.status(web)["proxy"]["ready"], 10)
        literal.goes_on()
    assert len(literal.failures) <= 40, "a moment, not an outage"
    assert mesh.status(web)["capture"]["around_proxy"] > before
    wait_until(lambda: mesh.status(web)["capture"]["bypassed_since"] is None, 5)
    assert mesh.redis(web, "cache") == "PONG"


def reaches(host: Host, address: str) -> str:
    """``pong``, or what went wrong."""
    try:
        with host.connect(address, 6379, timeout=1) as client:
            client.sendall(b"PING\r\n")
            return "pong" if client.recv(7) == b"+PONG\r\n" else "nothing"
    except OSError as error:
        return type(error).__name__


@pytest.mark.parametrize(
    "posture", ["permissive", pytest.param("strict", marks=pytest.mark.long)], ids=["open", "closed"]
)
def test_a_proxy_that_hangs_is_gone_around_or_refused_by_policy_without_the_agent(mesh: Mesh, posture: str) -> None:
    web, cache = mesh.members["web"], mesh.members["cache"]
    virtual = next(text for text in mesh.resolve(web, "cache.default.mesh.internal") if ":" not in text)
    if posture == "strict":
        web.meshagent("posture", posture, "--confirm", "0")
        wait_until(lambda: mesh.status(web)["posture"] == posture and mesh.status(web)["capture"]["in_sync"], 20)
    envoy = mesh.status(web)["proxy"]["pid"]
    try:
        mesh.agents["web"].send_signal(signal.SIGSTOP)
        with web.capture(f"dst host {cache.address4} and tcp dst port 6379") as seen:
            os.kill(envoy, signal.SIGSTOP)
            wait_until(lambda: reaches(web, virtual) == "ConnectionRefusedError", 20, "refused at once")
            wanted = "pong" if posture == "permissive" else "ConnectionRefusedError"
            wait_until(lambda: reaches(web, cache.address4) == wanted, 20, "the literal address")
        assert bool(seen.packets()) is (posture == "permissive"), "only by policy open it goes there directly"
        os.kill(envoy, signal.SIGCONT)
        wait_until(lambda: reaches(web, virtual) == "pong", 20, "captured again, with the agent still stopped")
    finally:
        os.kill(envoy, signal.SIGCONT)
        mesh.agents["web"].send_signal(signal.SIGCONT)
    if posture == "strict":
        web.meshagent("posture", "permissive", "--confirm", "0")
    wait_until(lambda: mesh.status(web)["capture"]["bypassed_since"] is None and mesh.is_ready(web), 20)


def test_a_killed_guard_is_replaced_and_the_rules_never_go(mesh: Mesh) -> None:
    web = mesh.members["web"]
    before = saved(web)
    with mesh.busy(web, "cache") as busy:
        os.kill(guard_of(web), signal.SIGKILL)
        assert saved(web) == before
        busy.goes_on()
        wait_until(lambda: guard_of(web) and mesh.status(web)["capture"]["in_sync"], 10, "another guard")
        busy.goes_on()
    assert saved(web) == before


def guard_of(host: Host) -> int:
    command = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in host.processes()}
    return next((pid for pid, words in command.items() if b"meshagent.guard" in words), 0)


def test_to_nft_and_back_open_connections_never_notice(mesh: Mesh) -> None:
    web = mesh.members["web"]
    path = web.root / "etc/meshagent/agent.yaml"
    with mesh.busy(web, "cache") as busy:
        path.write_text("capture: {backend: auto}\n")
        wait_until(lambda: mesh.status(web)["capture"]["backend"] == "nft", 10)
        wait_until(lambda: not any("MESHAGENT" in line for line in saved(web)), 5, "no rule left in legacy tables")
        busy.goes_on()
        path.write_text("capture: {backend: iptables}\n")
        wait_until(lambda: captures(web), 10)
        wait_until(lambda: "meshagent" not in web.run(["nft", "list", "tables"]).stdout, 5)
        busy.goes_on()
        assert mesh.redis(web, "cache") == "PONG"


def test_off_and_leave_give_the_host_back_as_it_was(mesh: Mesh) -> None:
    web = mesh.members["web"]
    assert web.meshagent_json("capture", "off")["changed"]
    assert not captures(web)
    web.meshagent("capture", "on", "--confirm", "0")
    wait_until(lambda: captures(web), 10)
    mesh.leave(web)
    with suppress(NotInTimeError):  # the kernel frees a process's last traces a moment after it ended
        wait_until(lambda: not mesh.left_over(web), 5)
    assert mesh.left_over(web) == []


#: With everything dead or killed leaving has a minute of bounds of its own; a busy machine takes longer.
LEAVING = 180.0


def joined(mesh: Mesh) -> Host:
    """``web`` in the mesh, again where it has left."""
    web = mesh.lab.hosts["web"]
    if "web" not in mesh.members:
        path = web.root / "etc/meshagent/agent.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("capture: {backend: iptables}\n")
        mesh.join(web)
        mesh.settle()
    wait_until(lambda: captures(web), 20)
    return web


def left(mesh: Mesh, web: Host) -> list[str]:
    """Out of the mesh's books; what is not as it was before."""
    del mesh.members["web"], mesh.offers["web"]
    with suppress(NotInTimeError):  # the kernel frees a process's last traces a moment after it ended
        wait_until(lambda: not mesh.left_over(web), 10)
    return mesh.left_over(web)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_leave_killed_before_it_deals_with_others_is_finished_by_running_it_again(mesh: Mesh) -> None:
    """Agent, guard, proxy, programs; what it does to files is the same with every backend (test_mesh_leave.py)."""
    events = killed(joined(mesh), 0)
    assert left(mesh, mesh.lab.hosts["web"]) == []
    points = [number for number, line in enumerate(events, 1) if "socket.connect" in line or "Popen" in line]
    assert points
    for number in points:
        web = joined(mesh)
        killed(web, number)
        web.meshagent("leave", "--drain", "0", "--purge", timeout=LEAVING)
        assert left(mesh, web) == [], events[number - 1]


#: Stands where the programs of legacy iptables are: each change of tables passes here. ``victim`` is a pid, or
#: ``parent`` for the guard, ``number`` the change at which it is killed, ``when`` before it happens or after. A guard
#: that is killed before never makes the change; the command only waits for it, so then it happens all the same.
TOLL = """#!/bin/sh
PATH=/usr/bin:/bin
here={here}
name=${{0##*/}}
real() {{ "$here/real" "$name" "$@"; }}
case "$name $*" in *-restore*--test*) real "$@"; exit ;; *-restore*--counters*) ;; *) real "$@"; exit ;; esac
number=$(($(cat $here/count) + 1))
echo $number >$here/count
[ "$number" = "$(cat $here/number)" ] || {{ real "$@"; exit; }}
victim=$(cat $here/victim)
[ "$victim" = parent ] && victim=$PPID
when=$(cat $here/when)
[ $when = before ] || real "$@"
kill -9 $victim && echo $victim >$here/killed
[ $when = before ] && [ $victim != $PPID ] && real "$@"
"""
PROGRAMS = "/usr/sbin/xtables-legacy-multi"


def watch_changes(host: Host) -> Path:
    """The host's legacy programs are watched from now on; returns the directory that tells about them."""
    here = host.private / "toll"
    if not here.exists():
        here.mkdir()
        shutil.copy(PROGRAMS, here / "real")
        (here / "toll").write_text(TOLL.format(here=here))
        (here / "toll").chmod(0o755)
    host.run(["mount", "--bind", str(here / "toll"), PROGRAMS])
    return here


def leave_with_a_kill(host: Host, whom: str, number: int, when: str) -> int:
    """``leave`` while ``whom`` (``guard`` or ``command``) is killed at a change of tables; how many changes there were
    (of all, where ``number`` is 0). Nobody is killed where there were fewer: an agent that dies may be in the middle of
    one of its own."""
    here = watch_changes(host)
    (here / "killed").unlink(missing_ok=True)
    for name, text in {"count": "0", "number": str(number), "when": when, "victim": "parent"}.items():
        (here / name).write_text(text)
    pid = "" if whom == "guard" else f"echo $$ >{here}/victim; "
    command = [*host.meshagent_argv("leave", "--drain", "0", "--purge")]
    done = host.run(["sh", "-c", f'{pid}exec "$@"', "sh", *command], check=False, timeout=LEAVING)
    assert "Traceback" not in done.stderr
    wait_until(
        lambda: host.run(["umount", PROGRAMS], check=False).returncode == 0, 20, "the last change of tables to end"
    )
    changes = int((here / "count").read_text())
    assert (here / "killed").exists() is (0 < number <= changes), done.stderr
    return changes


#: Some of them always; each of both, before and after each change, takes minutes.
SOME = [("guard", 2, "after"), ("command", 3, "before")]


@pytest.mark.parametrize(("whom", "number", "when"), SOME)
def test_leave_with_guard_or_command_killed_at_a_change_of_tables_is_finished_by_running_it_again(
    mesh: Mesh, whom: str, number: int, when: str
) -> None:
    web = joined(mesh)
    assert leave_with_a_kill(web, whom, number, when) >= number
    web.meshagent("leave", "--drain", "0", "--purge", timeout=LEAVING)
    assert left(mesh, web) == []


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("whom", ["guard", "command"])
def test_leave_with_guard_or_command_killed_at_each_change_of_tables(mesh: Mesh, whom: str) -> None:
    """Nothing is lost on the way: with the agent dead as well, there is nobody but the command that is run again."""
    web = joined(mesh)
    changes = leave_with_a_kill(web, whom, 0, "after")
    assert left(mesh, web) == [] and changes >= 4, "chains and anchor of two families"
    for number in range(1, changes + 1):
        for when in ("before", "after"):
            web = joined(mesh)
            mesh.agents["web"].kill()
            if leave_with_a_kill(web, whom, number, when) >= number:
                web.meshagent("leave", "--drain", "0", "--purge", timeout=LEAVING)
            assert left(mesh, web) == [], (number, when)
