"""Three hosts for the data path: a hub, a server with nginx, Redis and iperf3, and a client; enrolled by command line.

nginx runs one worker and writes no access log: a server that does little itself makes the proxy's share visible.
"""

import json
import os
import shlex
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from meshagent.lab import Host, Lab, Program, recipes, wait_until
from tests.bench import sidecar

#: service -> (port in the mesh, port of the process, protocol it is declared as)
SERVICES = {
    "web-tcp": (8001, 8000, "tcp"),
    "web-http": (8002, 8000, "http"),
    "kv-tcp": (7001, 6379, "tcp"),
    "kv-redis": (7002, 6379, "redis"),
    "bulk-tcp": (5202, 5201, "tcp"),
}
_PROCESSES = (8000, 6379, 5201)

_NGINX = """
daemon off; pid nginx.pid; error_log stderr error; worker_processes 1; user nobody nogroup;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp;
  scgi_temp_path tmp; default_type text/plain; keepalive_requests 100000000; keepalive_timeout 600s;
  server {{ listen {port}; location / {{ return 200 "{body}\\n"; }} }}
}}
"""
_BODY = "x" * 255


def envoy_binary() -> Path:
    """MESHAGENT_ENVOY, else the unpacked one in the build cache."""
    cache = os.environ.get("MESHAGENT_CACHE", "/var/cache/meshagent-build")
    return Path(os.environ.get("MESHAGENT_ENVOY", f"{cache}/envoy/1.40.0/envoy"))


@dataclass
class Stage:
    """``agents``: host name -> its running agent."""

    lab: Lab
    hub: Host
    client: Host
    server: Host
    agents: dict[str, Program] = field(default_factory=dict)
    virtual: dict[str, str] = field(default_factory=dict)

    def way(self, service: str, shape: str) -> tuple[str, int]:
        """Address and port to dial on the client for a process of ``service`` (``web``, ``kv``, ``bulk``)."""
        target = SERVICES[f"{service}-tcp"][1]
        if shape == "direct":
            return self.server.address, target
        if shape == "raw":
            return "127.0.0.1", sidecar.client_port(target)
        name = f"{service}-{shape}"
        return self.virtual[name], SERVICES[name][0]


def build(lab: Lab) -> Stage:
    """Everything up: the mesh ready, the raw shape ready, every service answering over every shape."""
    os.environ["MESHAGENT_ENVOY"] = str(envoy_binary())
    stage = Stage(lab, lab.host("hub"), lab.host("client"), lab.host("server"))
    recipes.redis(stage.server, options=("--loglevel", "warning"))
    _nginx(stage.server, 8000)
    stage.server.popen(["iperf3", "--server", "--port", "5201"])
    start_hub(stage.hub)
    for host in (stage.server, stage.client):
        enroll(stage.hub, host)
    for name, (port, target, protocol) in SERVICES.items():
        options = ["--port", str(port), "--target-port", str(target), "--protocol", protocol]
        stage.server.meshagent("service", "add", name, *options)
    for host in (stage.server, stage.client):
        stage.agents[host.name] = host.start_meshagent("run", log="agent")
    for host in (stage.server, stage.client):
        wait_until(partial(is_ready, host, len(SERVICES)), timeout=30, what=f"{host.name} ready")
    peers = stage.client.meshagent_json("peers")["services"]
    stage.virtual = {row["host"].partition(".")[0]: _first4(row["addresses"]) for row in peers}
    _start_sidecars(stage)
    stage.server.run(["redis-cli", "set", "key:__rand_int__", "x" * 64])
    return stage


def start_hub(host: Host) -> Program:
    """A hub on ``host``, ready to be asked."""
    program = host.start_meshagent("hub", "run", log="hub")
    wait_until(lambda: host.meshagent_json("hub", "hosts"), what="the hub")
    return program


def enroll(hub: Host, host: Host) -> None:
    """``host`` joins with a token of its own; its agent isn't started."""
    host.meshagent(*join_line(hub, host.name), "--confirm", "0")


def join_line(hub: Host, account: str) -> list[str]:
    """The words behind ``meshagent`` of a fresh join line."""
    made = hub.meshagent_json("hub", "token", "create", "--service-account", account)
    return shlex.split(str(made["command"]))[1:]


def is_ready(host: Host, services: int) -> bool:
    """Connected, capturing, Envoy ready, all services of the mesh known with a healthy endpoint."""
    status = host.meshagent_json("status", check=False)
    if not status or not (status["capture"]["active"] and status["proxy"]["ready"]):
        return False
    rows = host.meshagent_json("peers")["services"]
    return len(rows) == services and all(any(e["healthy"] for e in row["endpoints"]) for row in rows)


def _first4(addresses: list[str]) -> str:
    return next(address for address in addresses if ":" not in address)


def _nginx(host: Host, port: int) -> None:
    directory = host.private / "nginx"
    directory.mkdir(mode=0o755)
    (directory / "nginx.conf").write_text(_NGINX.format(port=port, body=_BODY))
    host.popen(["nginx", "-p", str(directory), "-c", "nginx.conf"], log="nginx")
    wait_until(lambda: _accepts(host, port), what="nginx answering")


def _accepts(host: Host, port: int) -> bool:
    host.connect(host.address, port).close()
    return True


def _start_sidecars(stage: Stage) -> None:
    pki = stage.lab.directory / "sidecar"
    pki.mkdir(mode=0o700)
    sidecar.write_pki(pki)
    shapes = (
        (stage.server, sidecar.server(stage.server.address, _PROCESSES, pki)),
        (stage.client, sidecar.client(stage.server.address, _PROCESSES, pki)),
    )
    for number, (host, bootstrap) in enumerate(shapes):
        path = pki / f"{host.name}.json"
        path.write_text(json.dumps(bootstrap))
        argv = [str(envoy_binary()), "--config-path", str(path), "--concurrency", str(sidecar.CONCURRENCY)]
        host.popen([*argv, "--log-level", "error", "--base-id", str(77_000 + number)], log="sidecar")
    ping = ["redis-cli", "-h", "127.0.0.1", "-p", str(sidecar.client_port(6379)), "ping"]
    wait_until(lambda: stage.client.run(ping).stdout == "PONG\n", what="the raw shape answering")
