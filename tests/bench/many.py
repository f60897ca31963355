"""A host in a mesh of many services: how soon it serves a change and its last known state, what its agent costs.

Hub, agent and Envoy are real; the hosts that announce the services are simulated (changing.py). ``flip`` is served by
one of two small servers that answer with their port, without a proxy in front of them, so that what a caller reads
tells which endpoint its own Envoy used.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from meshagent.lab import Host, Lab, Program, wait_until
from tests.bench.lifecycle import resident
from tests.bench.samples import Sample
from tests.bench.stage import enroll, start_hub

_REPOSITORY = Path(__file__).resolve().parents[2]
_PORTS = (7101, 7102)
_NAME = "flip.example.com"
_ENTRY = f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: flip}}
spec:
  hosts: [{_NAME}]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{{number: 8080, name: tcp, protocol: TCP}}]
  workloadSelector: {{labels: {{app: flip}}}}
"""
#: An agent is as big as it stays when it has run for ten seconds (meshagent/runtime/resident.py).
_START_SECONDS = 13.0
#: And it starts from what an agent left that had come to rest.
_SETTLED_SECONDS = 5.0
#: Accepts, answers with its port, closes.
_SERVER = """
import socket, sys
listening = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=512)
while True:
    with listening.accept()[0] as client:
        client.sendall(sys.argv[1].encode())
"""
#: An application that dials again and again: says each new answer (0: none) and when (CLOCK_MONOTONIC). It sleeps in
#: between, because whoever is measured has the same cores.
_CLIENT = """
import json, socket, sys, time
address, port, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
last = None
while True:
    with socket.socket() as server:
        server.settimeout(1)
        try:
            server.connect((address, port))
            answer = int(server.recv(64) or 0)
        except OSError:
            answer = 0
    if answer != last:
        last = answer
        print(json.dumps({"answer": answer, "at": time.monotonic()}), flush=True)
    time.sleep(pause)
"""
_PAUSE = 0.003


def measure(lab: Lab, services: int, changes: int, starts: int, idle_seconds: float) -> Iterator[Sample]:
    """Samples ``served`` (ms), ``cold`` (s), ``many-rss`` (MB), ``many-idle`` (% of a core)."""
    hub_host, far, host = lab.host("hub"), lab.host("far"), lab.host("legacy")
    hub = start_hub(hub_host)
    for port in _PORTS:
        far.popen([sys.executable, "-c", _SERVER, str(port)])
    others = _others(hub_host, far, services)
    hub_host.meshagent("hub", "apply", "-f", "-", input=_ENTRY)
    enroll(hub_host, host)
    agent = host.start_meshagent("run", log="agent")
    wait_until(lambda: _knows(host, services + 1), timeout=120, what="the host knows all services", interval=0.2)
    address = _address(host)
    wait_until(lambda: _answer(host, address) == _PORTS[0], timeout=60, what="flip answers", interval=0.05)
    time.sleep(_START_SECONDS)  # what only the start needs is given back then
    yield Sample("many-rss", resident(agent.pid))
    yield Sample("many-idle", idle(agent.pid, idle_seconds))
    for number in range(changes + 1):
        taken = _change(host, address, others)
        if number:  # the first one warms caches
            yield Sample("served", taken, "", number)
    others.stop()
    hub.stop()
    for number in range(starts):
        agent, taken = _cold(host, address, agent)
        yield Sample("cold", taken, "", number)


def idle(pid: int, seconds: float) -> float:
    """Per cent of a core that a process uses."""
    before = psutil.Process(pid).cpu_times()
    time.sleep(seconds)
    after = psutil.Process(pid).cpu_times()
    return 100 * (after.user + after.system - before.user - before.system) / seconds


def _others(hub: Host, far: Host, services: int) -> Program:
    made = hub.meshagent_json("hub", "token", "create", "--service-account", "fleet", "--uses", str(services))
    argv = [sys.executable, "-m", "tests.bench.changing", f"{hub.address}:15012", made["token"], str(services)]
    argv += [far.address, *map(str, _PORTS)]
    environment = {"PYTHONPATH": str(_REPOSITORY)}
    program = far.popen(argv, log="changing", stdin=subprocess.PIPE, env=environment, cwd=str(_REPOSITORY))
    wait_until(lambda: _told(program, "announced"), timeout=120, what="services announced", interval=0.05)
    return program


def _told(program: Program, key: str) -> list[Any]:
    """What the program told under ``key`` so far; its own words when it ended instead."""
    if not program.alive:
        raise RuntimeError(f"the simulated hosts ended: {program.tail(30)}")
    return [json.loads(line)[key] for line in program.text().splitlines() if line.startswith(f'{{"{key}"')]


def _knows(host: Host, services: int) -> bool:
    status = host.meshagent_json("status", check=False)
    if not status or not (status["capture"]["active"] and status["proxy"]["ready"]):
        return False
    return len(host.meshagent_json("peers")["services"]) >= services


def _address(host: Host) -> str:
    rows = host.meshagent_json("peers")["services"]
    return next(a for row in rows if row["host"] == _NAME for a in row["addresses"] if ":" not in a)


def _answer(host: Host, address: str) -> int | None:
    """The port of the server that answers a new connection; None where none does."""
    with contextlib.suppress(OSError), host.connect(address, 8080, timeout=1.0) as client:
        return int(client.recv(64) or 0) or None
    return None


def _change(host: Host, address: str, others: Program) -> float:
    """Milliseconds from saying the change to the hub until a connection from the host goes by it."""
    moves = len(_told(others, "moved"))
    assert others.popen.stdin is not None
    with _client(host, address) as answers:
        was = answers()[-1][0]
        others.popen.stdin.write(b"\n")
        others.popen.stdin.flush()
        wait_until(lambda: answers()[-1][0] not in (0, was), timeout=30, what="the change served", interval=0.02)
        served = answers()[-1][1]
    wait_until(lambda: len(_told(others, "moved")) > moves, what="the change told", interval=0.01)
    return float((served - _told(others, "moved")[-1][1]) * 1e3)


@contextlib.contextmanager
def _client(host: Host, address: str) -> Iterator[Callable[[], list[tuple[int, float]]]]:
    """A running ``_CLIENT``: gives (answer, when) of each change so far, at least one."""
    client = host.popen([sys.executable, "-c", _CLIENT, address, "8080", str(_PAUSE)], log="client")

    def answers() -> list[tuple[int, float]]:
        lines = [json.loads(line) for line in client.text().splitlines() if line.endswith("}")]
        return [(line["answer"], line["at"]) for line in lines]

    wait_until(answers, what="a first answer", interval=0.01)
    try:
        yield answers
    finally:
        client.stop()


def _cold(host: Host, address: str, agent: Program) -> tuple[Program, float]:
    """Seconds from the start of an agent, with neither hub nor Envoy there, until it serves what was last known."""
    time.sleep(_SETTLED_SECONDS)
    proxy = psutil.Process(int(host.meshagent_json("status")["proxy"]["pid"]))
    agent.popen.kill()
    agent.popen.wait(10)
    proxy.kill()
    wait_until(lambda: not proxy.is_running() or proxy.status() == psutil.STATUS_ZOMBIE, what="Envoy to be gone")
    with _client(host, address) as answers:
        assert answers()[-1][0] == 0, "somebody answers without a proxy"
        agent = host.start_meshagent("run", log="agent")
        began = time.monotonic()  # it executes now; to fork this process takes 40 ms before
        wait_until(lambda: answers()[-1][0], timeout=60, what="the last known state served", interval=0.05)
        return agent, answers()[-1][1] - began
