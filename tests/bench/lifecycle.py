"""What a person waits for and what stays in memory: joining, commands, resident sizes."""

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from meshagent.lab import Host, wait_until
from tests.bench.stage import SERVICES, Stage, join_line


def resident(pid: int) -> float:
    """Resident set in MB (10^6 bytes)."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def first_byte(stage: Stage, number: int) -> float:
    """Seconds from typing the join line on a fresh host until Redis answered it over mutual TLS.

    Nothing starts the agent on a lab host but the second command, typed at once.
    """
    host = stage.lab.host(f"new-{number}")
    words = join_line(stage.hub, host.name)
    began = time.monotonic()
    host.meshagent(*words, "--confirm", "0")
    agent = host.start_meshagent("run", log="agent")
    wait_until(lambda: _redis_answers(stage, host), timeout=20, what="the first byte", interval=0.005)
    taken = time.monotonic() - began
    host.meshagent("leave", "--drain", "0")
    agent.wait(15)
    return taken


def _redis_answers(stage: Stage, host: Host) -> bool:
    with host.connect(stage.virtual["kv-tcp"], SERVICES["kv-tcp"][0], timeout=1) as client:
        client.sendall(b"PING\r\n")
        return client.recv(64).startswith(b"+PONG")


def sizes(stage: Stage) -> Iterator[tuple[str, float]]:
    """Figure name -> MB, of the server's agent, guard and Envoy after everything they have served."""
    yield "agent-rss", resident(stage.agents["server"].pid)
    status = stage.server.meshagent_json("status")
    yield "proxy-rss", resident(int(status["proxy"]["pid"]))
    yield "guard-rss", resident(_guard(stage.server))


def crash(stage: Stage) -> float:
    """Milliseconds from the kill of the client's Envoy until Redis answers through the one that came instead.

    The agent has finished its own start: that is what it is like when something dies.
    """
    wait_until(lambda: _settled(stage.client), what="the agent to be connected and in sync")
    pid = int(stage.client.meshagent_json("status")["proxy"]["pid"])
    wait_until(lambda: _redis_answers(stage, stage.client), what="Redis before the kill", interval=0.005)
    psutil.Process(pid).kill()
    began = time.monotonic()
    wait_until(lambda: _redis_answers(stage, stage.client), what="Redis after the kill", interval=0.002)
    taken = (time.monotonic() - began) * 1e3
    stage.client.meshagent_json("status")
    return taken


def _settled(host: Host) -> bool:
    status = host.meshagent_json("status")
    return bool(status["control_plane"]["connected"] and status["capture"]["in_sync"] and status["proxy"]["ready"])


def adopt(stage: Stage) -> float:
    """Milliseconds that a started agent takes to prove and adopt the Envoy of the one before, by its own log."""
    stage.agents["client"].stop()
    agent = stage.agents["client"] = stage.client.start_meshagent("run", log="agent")
    line = wait_until(lambda: re.search(r"proxy adopted.* seconds=([\d.e-]+)", agent.text()), 30, "an adoption")
    wait_until(lambda: _redis_answers(stage, stage.client), what="Redis after an adoption")
    wait_until(lambda: "agent started" in agent.text(), what="an agent that answers")
    return float(line[1]) * 1e3


def _guard(host: Host) -> int:
    for pid in host.processes():
        if "meshagent.guard" in psutil.Process(pid).cmdline():
            return pid
    raise LookupError(f"no guard on {host.name}")


def command(host: Host, *words: str) -> float:
    """Milliseconds of ``meshagent WORDS`` on a host, from start to exit."""
    argv = [str(Path(sys.executable).with_name("meshagent")), *words]
    began = time.monotonic()
    host.run(argv)
    return (time.monotonic() - began) * 1e3
