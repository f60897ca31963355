"""A running mesh on lab hosts, made and asked as a person would: with the command line, nothing else.

Three lines make one: ``with open_mesh() as mesh:``, ``mesh.join(host, ("cache", 6379, "redis"))``, ``mesh.settle()``.
When the block ends without a failure, the logs of everything that ran are read: a part that failed and was started
again, or a traceback, fails the test even if nobody noticed otherwise.
"""

import contextlib
import json
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from socket import socket
from typing import Any

from meshagent.lab import Host, Lab, Program, recipes, wait_until
from meshagent.lab.snapshot import Snapshot, diff
from meshagent.lab.waiting import NotInTimeError
from meshagent.model.errors import MeshagentError

#: Service name, port, protocol.
Offer = tuple[str, int, str]

#: What no log of ours may hold.
FAILURES = ("a part of the agent failed", "Traceback (most recent call last)", "never retrieved", "was never awaited")


@dataclass
class Mesh:
    """A hub and hosts that joined it. ``agents`` are the running daemons by host name; ``accepts`` are risks that are
    taken when services are declared."""

    lab: Lab
    hub: Host
    hub_program: Program
    members: dict[str, Host] = field(default_factory=dict)
    agents: dict[str, Program] = field(default_factory=dict)
    before: dict[str, Snapshot] = field(default_factory=dict)
    offers: dict[str, Sequence[Offer]] = field(default_factory=dict)
    accepts: Sequence[str] = ()

    # --- into the mesh

    def token(self, account: str, *options: str) -> list[str]:
        """Arguments of the join line: ``enroll HUB TOKEN``."""
        made = self.hub.meshagent_json("hub", "token", "create", "--service-account", account, *options)
        return shlex.split(made["command"])[1:]

    def join(self, host: Host, *offers: Offer, options: Sequence[str] = (), account: str = "") -> Host:
        """Enrol ``host``, declare ``offers``, start its agent; returns before it is ready (``settle`` waits)."""
        host.meshagent(*self.token(account or host.name), *options)
        for name, port, protocol in offers:
            risks = [word for risk in self.accepts for word in ("--accept", risk)]
            host.meshagent("service", "add", name, "--port", str(port), "--protocol", protocol, *risks)
        self.members[host.name], self.offers[host.name] = host, offers
        self.start(host)
        return host

    def join_all(self, *wanted: tuple[Host, Sequence[Offer]]) -> None:
        """``join`` several at the same time, then ``settle``."""
        with ThreadPoolExecutor(len(wanted)) as pool:
            list(pool.map(lambda pair: self.join(pair[0], *pair[1]), wanted))
        self.settle()

    def start(self, host: Host, env: Mapping[str, str] | None = None) -> Program:
        """Start (again) the agent of an enrolled host."""
        self.agents[host.name] = host.start_meshagent("run", log="agent", env=env)
        return self.agents[host.name]

    def settle(self, timeout: float = 20.0) -> None:
        """Until every member is ready and knows every service as healthy."""
        for host in self.members.values():
            wait_until(lambda host=host: self.is_ready(host), timeout, f"{host.name} ready", 0.05)  # type: ignore[misc]

    def is_ready(self, host: Host) -> bool:
        """Connected, captured, proxy and own services well, and all services of the mesh known here."""
        found = self.status(host)
        if not found["control_plane"]["connected"] or not found["proxy"]["ready"] or not found["capture"]["in_sync"]:
            return False
        if not all(service["healthy"] and service["host"] for service in found["services"]):
            return False
        if len(found["services"]) != len(self.offers[host.name]):
            return False
        wanted = {f"{offer[0]}.default.mesh.internal" for offers in self.offers.values() for offer in offers}
        known = {s["host"]: s["endpoints"] for s in self.peers(host)}
        return all(known.get(name) and all(e["healthy"] for e in known[name]) for name in wanted)

    # --- asking

    def status(self, host: Host) -> dict[str, Any]:
        """``meshagent status -o json``; raises ``MeshagentError`` while the agent doesn't answer."""
        done = host.meshagent("status", "-o", "json", check=False)
        if not done.stdout:
            raise MeshagentError("no-status", done.stderr)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def conditions(self, host: Host) -> list[str]:
        """Codes of what ``status`` complains about."""
        return [condition["code"] for condition in self.status(host)["conditions"]]

    def calm(self, host: Host, seconds: float = 10.0) -> None:
        """Until ``status`` complains about nothing; fails with what it says."""
        try:
            wait_until(lambda: self.conditions(host) == [], seconds)
        except NotInTimeError:
            raise AssertionError(f"{host.name}: {self.status(host)['conditions']}") from None

    def peers(self, host: Host) -> list[dict[str, Any]]:
        """``meshagent peers -o json``."""
        return host.meshagent_json("peers")["services"]

    def endpoints(self, host: Host, service: str) -> dict[str, bool]:
        """Host name -> healthy, of a service as ``peers`` shows it on ``host``."""
        found = {row["host"]: row["endpoints"] for row in self.peers(host)}
        return {e["host"]: e["healthy"] for e in found.get(f"{service}.default.mesh.internal", [])}

    def resolve(self, host: Host, name: str) -> list[str]:
        """What the host's own resolver says; empty when there is no such name."""
        done = host.run(["getent", "ahosts", name], check=False, timeout=12)
        return list(dict.fromkeys(line.split()[0] for line in done.stdout.splitlines()))

    def proxy_record(self, host: Host) -> dict[str, Any]:
        """What the host wrote down about its proxy: readable without an agent."""
        found: dict[str, Any] = json.loads((host.root / "run/meshagent/proxy.json").read_text())
        return found

    # --- using

    def redis(self, host: Host, service: str, *command: str, timeout: float = 8.0) -> str:
        """``redis-cli`` by name; what it printed, errors too."""
        argv = ["timeout", str(timeout), "redis-cli", "-h", f"{service}.default.mesh.internal", *(command or ("ping",))]
        done = host.run(argv, check=False, timeout=timeout + 5)
        return (done.stdout + done.stderr).strip()

    def busy(self, host: Host, service: str, port: int = 6379) -> "BusyRedis":
        """An open connection that is never idle."""
        return BusyRedis(host, self.resolve(host, f"{service}.default.mesh.internal")[0], port)

    # --- out of it

    def leave(self, host: Host, *options: str) -> None:
        """Leave, and be as before ``watch``."""
        host.meshagent("leave", "--drain", "2", "--purge", *options)
        self.agents[host.name].wait(5)
        del self.members[host.name]

    def left_over(self, host: Host) -> list[str]:
        """What is not as it was when ``before`` was filled."""
        return diff(self.before[host.name], host.snapshot())

    def faults(self) -> list[str]:
        """Lines of our logs that no healthy run has."""
        logs = [
            path
            for host in (self.hub, *self.lab.hosts.values())
            for path in (*host.private.glob("agent*.log"), *host.private.glob("hub*.log"), *_guard_logs(host))
        ]
        return [
            f"{path.parent.name}/{path.name}: {line}"
            for path in dict.fromkeys(logs)
            for line in path.read_text(errors="replace").splitlines()
            if any(failure in line for failure in FAILURES)
        ]


def _guard_logs(host: Host) -> Iterator[Any]:
    yield from (host.root / "run/meshagent").glob("guard.log")


class BusyRedis:
    """One Redis connection that pings every 10 ms from a thread, and knows what it went through."""

    def __init__(self, host: Host, address: str, port: int) -> None:
        self.address = address
        self._socket: socket = host.connect(address, port)
        self._reader = self._socket.makefile("rb")
        self.answers, self.slowest, self.error = 0, 0.0, ""
        self.client_id = self._ask(b"CLIENT ID\r\n")
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _ask(self, command: bytes) -> bytes:
        self._socket.sendall(command)
        answer = self._reader.readline()
        if not answer:
            raise ConnectionError("the connection was closed")
        return answer

    def _run(self) -> None:
        while not self._ending.wait(0.01):
            began = time.monotonic()
            try:
                if self._ask(b"PING\r\n") != b"+PONG\r\n":
                    raise ConnectionError("not a PONG")
            except OSError as error:
                self.error = f"{error!r} after {self.answers} answers"
                return
            self.answers += 1
            self.slowest = max(self.slowest, time.monotonic() - began)

    def goes_on(self, more: int = 5) -> None:
        """Raises unless ``more`` further answers come."""
        target = self.answers + more
        wait_until(lambda: self.answers >= target or self.error, 5, "answers on the busy connection")
        assert not self.error, self.error

    def close(self) -> None:
        """End it; raises if it ever failed, or is not the connection it was at the beginning."""
        self._ending.set()
        self._thread.join(5)
        try:
            assert not self.error, self.error
            assert self._ask(b"CLIENT ID\r\n") == self.client_id
        finally:
            self._reader.close()  # while it is open, so is the connection
            self._socket.close()

    def __enter__(self) -> "BusyRedis":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._ending.set()


class Connecting:
    """New connections one after the other from a thread, each used for one Redis PING; ``failures`` in words."""

    def __init__(self, host: Host, address: str, port: int = 6379, pause: float = 0.005) -> None:
        self._host, self._where, self._pause = host, (address, port), pause
        self.answers, self.failures = 0, list[str]()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ending.wait(self._pause):
            try:
                with self._host.connect(*self._where) as connection:
                    connection.sendall(b"PING\r\n")
                    answer = connection.recv(100)
                if answer != b"+PONG\r\n":
                    raise ConnectionError(f"answered {answer!r}")
                self.answers += 1
            except OSError as error:
                self.failures.append(f"{error!r} after {self.answers} answers")

    def goes_on(self, more: int = 20) -> None:
        """Returns when ``more`` further connections were answered."""
        target = self.answers + more
        wait_until(lambda: self.answers >= target, 15, "answers on new connections")

    def __enter__(self) -> "Connecting":
        self._thread.start()
        self.goes_on(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(10)


@contextlib.contextmanager
def open_mesh(families: Sequence[int] = (4, 6)) -> Iterator[Mesh]:
    """A lab with a running hub; use ``lab.host`` and ``join`` for the rest."""
    with Lab(families) as lab:
        hub = lab.host("hub")
        mesh = Mesh(lab, hub, hub.start_meshagent("hub", "run", log="hub"))
        wait_hub(mesh)
        yield mesh
        assert not mesh.faults(), "\n".join(mesh.faults())


def wait_hub(mesh: Mesh) -> None:
    """Until the hub answers its administrators."""
    wait_until(lambda: mesh.hub.meshagent_json("hub", "hosts", check=False) is not None, 15, "the hub", 0.05)


def took(action: Callable[[], object]) -> float:
    """Seconds of wall time."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def took_at_best(action: Callable[[], object], tries: int = 5) -> float:
    """Seconds of wall time of the fastest: what is done at once is so at least once, however busy the machine."""
    return min(took(action) for _ in range(tries))


@contextlib.contextmanager
def open_web_and_cache() -> Iterator[Mesh]:
    """The smallest mesh with a service, IPv4: ``web`` calls the Redis of ``cache``; both are ready."""
    with open_mesh((4,)) as mesh:
        web, cache = mesh.lab.host("web"), mesh.lab.host("cache")
        recipes.redis(cache)
        mesh.join_all((web, []), (cache, [("cache", 6379, "redis")]))
        yield mesh
