"""Every fault: how it is injected and healed, and what it may cost whoever uses the mesh."""

import contextlib
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from meshagent.lab import Host, wait_until
from meshagent.model.ports import CONTROL_PLANE
from tests.chaos.stage import Stage
from tests.lab.clocks import wrong_clock
from tests.lab.mesh import Mesh

CLIENTS, SERVERS = ("web", "app"), ("cache", "pages", "db", "queue")


@dataclass(frozen=True, slots=True)
class Fault:
    """``inject`` does it, heals it where it doesn't heal itself, and says whom it hit.

    ``costs``: seconds within which exchanges may fail, 0 = not one may; what cuts a connection can't be free for it.
    """

    name: str
    inject: Callable[[Stage], str]
    costs: float = 0.0


def agent_killed(stage: Stage) -> str:
    return _agent(stage, signal.SIGKILL)


def agent_restarted(stage: Stage) -> str:
    return _agent(stage, signal.SIGTERM)


def _agent(stage: Stage, number: int) -> str:
    host = stage.host()
    stage.mesh.agents[host.name].stop(15, number)
    stage.mesh.start(host)
    return host.name


def agent_stopped(stage: Stage) -> str:
    host = stage.host()
    stage.mesh.agents[host.name].send_signal(signal.SIGSTOP)
    time.sleep(3)  # the time itself is the fault
    stage.mesh.agents[host.name].send_signal(signal.SIGCONT)
    return host.name


def envoy_killed_at_a_client(stage: Stage) -> str:
    return _envoy(stage, stage.host(*CLIENTS), signal.SIGKILL)


def envoy_killed_at_a_server(stage: Stage) -> str:
    return _envoy(stage, stage.host(*SERVERS), signal.SIGKILL)


def envoy_stopped(stage: Stage) -> str:
    host = stage.host(*CLIENTS)
    pid = _proxy(stage.mesh, host)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(4)  # the time itself is the fault: shorter than what a hung proxy is given
    os.kill(pid, signal.SIGCONT)
    return host.name


def _envoy(stage: Stage, host: Host, number: int) -> str:
    """Both epochs, where one lives on for its connections: else nobody would notice."""
    record = stage.mesh.proxy_record(host)["data"]
    for epoch in (record, record["parent"]):
        with contextlib.suppress(ProcessLookupError):
            if epoch is not None:
                os.kill(int(epoch["handle"]["pid"]), number)
    return host.name


def _proxy(mesh: Mesh, host: Host) -> int:
    return int(mesh.proxy_record(host)["data"]["handle"]["pid"])


def hot_restart(stage: Stage) -> str:
    host = stage.host()
    wait_until(lambda: host.meshagent_json("proxy", "show")["parent"] is None, 60, "one epoch", 0.3)
    host.meshagent("proxy", "restart")
    return host.name


def hub_killed(stage: Stage) -> str:
    stage.mesh.hub_program.kill()
    stage.restart_hub()
    return "hub"


def hub_away(stage: Stage) -> str:
    stage.mesh.hub_program.kill()
    time.sleep(5)  # the time itself is the fault
    stage.restart_hub()
    return "hub"


def hub_hung(stage: Stage) -> str:
    stage.mesh.hub_program.send_signal(signal.SIGSTOP)
    time.sleep(5)  # the time itself is the fault
    stage.mesh.hub_program.send_signal(signal.SIGCONT)
    return "hub"


def garbage_for_a_hub(stage: Stage) -> str:
    """Somebody else answers at the hub's address, with noise."""
    stage.mesh.hub_program.kill()
    server = stage.mesh.hub.listen(CONTROL_PLANE, stage.mesh.hub.address)
    noise, ending = stage.dice.randbytes(4096), threading.Event()

    def answer() -> None:
        server.settimeout(0.2)
        while not ending.is_set():
            try:
                client, _ = server.accept()
                client.sendall(noise)
                client.close()
            except OSError:
                continue

    thread = threading.Thread(target=answer)
    thread.start()
    time.sleep(4)  # agents come back with backoff: several times in this time
    ending.set()
    thread.join()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.close()
    stage.restart_hub()
    return "hub"


def guard_killed(stage: Stage) -> str:
    host = stage.host(*CLIENTS)
    pid = int((host.root / "run/meshagent/guard.lock").read_text())
    os.kill(pid, signal.SIGKILL)
    return host.name


def disk_full(stage: Stage) -> str:
    """With an agent that is restarted meanwhile."""
    host = stage.host()
    file = host.root / "var/lib/filler"
    host.run(["dd", "if=/dev/zero", f"of={file}", "bs=64k"], check=False)
    stage.mesh.agents[host.name].stop(15)
    stage.mesh.start(host)
    wait_until(lambda: stage.mesh.status(host)["proxy"]["ready"], 30, "the agent on a full disk")
    host.run(["rm", str(file)])
    return host.name


def cache_damaged(stage: Stage) -> str:
    host = stage.host()
    stage.mesh.agents[host.name].kill()
    host.run(["dd", "if=/dev/urandom", f"of={host.root}/var/lib/meshagent/config.cache", "bs=4k", "count=1"])
    stage.mesh.start(host)
    return host.name


def database_locked(stage: Stage) -> str:
    """Somebody else has the hub's database open and writes, until the hub has told of it."""
    hub = stage.mesh.hub
    with contextlib.closing(sqlite3.connect(hub.root / "var/lib/meshagent-hub/hub.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        wait_until(lambda: "store-locked" in _tried(hub), 60, "a hub that tells of it", 0.3)
        other.execute("ROLLBACK")
    wait_until(lambda: "store-locked" not in _conditions(hub), 60, "a hub that is well again", 0.3)
    return "hub"


def _tried(hub: Host) -> list[str]:
    """What the hub complains about after it was asked to write something."""
    hub.meshagent("hub", "token", "create", "--service-account", "nobody", check=False)
    return _conditions(hub)


def _conditions(hub: Host) -> list[str]:
    return [condition["code"] for condition in hub.meshagent_json("hub", "status", check=False)["conditions"]]


def clock_jumped(stage: Stage) -> str:
    """The hub lives an hour ahead for a while."""
    stage.mesh.hub_program.kill()
    stage.restart_hub(wrong_clock("+1h"))
    host = stage.host()
    wait_until(lambda: "clock-skew" in stage.mesh.conditions(host), 60, "a host that sees it", 0.3)
    stage.mesh.hub_program.kill()
    stage.restart_hub()
    return "hub"


def clock_of_a_host_ahead(stage: Stage) -> str:
    """An agent starts an hour ahead of everybody, lives so until its host says it, and is back in time."""
    host = stage.host()
    stage.mesh.agents[host.name].stop(15)
    stage.mesh.start(host, env=wrong_clock("+1h"))
    wait_until(lambda: "clock-skew" in stage.mesh.conditions(host), 60, "a host that sees it", 0.3)
    stage.mesh.agents[host.name].stop(15)
    stage.mesh.start(host)
    return host.name


def rules_flushed(stage: Stage) -> str:
    host = stage.host()
    host.run(["nft", "flush", "ruleset"], check=False)
    return host.name


def link_down(stage: Stage) -> str:
    """The cable of a server is out for two seconds; its default route comes back with it, as a network manager does."""
    host = stage.host(*SERVERS)
    routes = host.run(["ip", "-4", "route", "show", "default"]).stdout.strip()
    host.run(["ip", "link", "set", "eth0", "down"])
    time.sleep(2)  # the time itself is the fault
    host.run(["ip", "link", "set", "eth0", "up"])
    host.run(["ip", "route", "replace", *routes.split()])
    return host.name


FAULTS = (
    Fault("agent killed", agent_killed),
    Fault("agent restarted", agent_restarted),
    Fault("agent stopped for 3 s", agent_stopped),
    Fault("proxy restarted hot", hot_restart),
    Fault("proxy killed at a client", envoy_killed_at_a_client, 10.0),
    Fault("proxy killed at a server", envoy_killed_at_a_server, 10.0),
    Fault("proxy stopped for 4 s", envoy_stopped, 20.0),
    Fault("hub killed", hub_killed),
    Fault("hub away for 5 s", hub_away),
    Fault("hub hangs for 5 s", hub_hung),
    Fault("garbage in place of the hub", garbage_for_a_hub),
    Fault("guard killed", guard_killed, 10.0),
    Fault("disk full", disk_full),
    Fault("cache damaged", cache_damaged),
    Fault("the hub's clock an hour ahead", clock_jumped),
    Fault("a host's clock an hour ahead", clock_of_a_host_ahead),
    Fault("hub database locked", database_locked),
    Fault("all rules flushed", rules_flushed),
    Fault("link of a server down for 2 s", link_down, 30.0),
)

#: One of each kind: what `make test` has time for.
SHORT = ("agent killed", "proxy restarted hot", "proxy killed at a server", "hub killed", "guard killed")
