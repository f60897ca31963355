"""Step ``open-connection``: connections older than the mesh stay what they were, to the very end of the story.

Three of them, from web to Redis on cache, opened before anybody enrols: one that says nothing, one that never stops,
one that listens to a channel. Redis itself is the witness: its CLIENT LIST names each connection by an id that it
never reuses and by the client's address and port. A connection that was cut and made again has another of both.
"""

import socket
import threading
import time
from dataclasses import dataclass, field

from meshagent.demo.narrator import StepResult, check
from meshagent.demo.ready import is_ready
from meshagent.demo.world import World
from meshagent.lab import Host

PORT = 6379
CHANNEL = "orders"
_COUNTER = "held:busy"

#: The busy connection sends a command this often, in seconds: thousands over the story, at 1 % of a core.
_PACE = 0.005
_ANSWER_WITHIN = 5.0


@dataclass
class Connection:
    """One open connection with what makes it this one. ``addresses`` are its own (address, port) and the peer's."""

    name: str
    socket: socket.socket
    client_id: int = 0
    addresses: tuple[tuple[str, int], tuple[str, int]] = (("", 0), ("", 0))

    def ask(self, *words: str) -> str:
        """One command, one answer of one line, as Redis sends it."""
        return _ask(self.socket, *words)

    @property
    def key(self) -> str:
        """How Redis names it: ``id=… addr=…``."""
        (address, port), _ = self.addresses
        return f"id={self.client_id} addr={address}:{port}"


@dataclass
class Held:
    """The three connections, and the thread that keeps one of them busy."""

    idle: Connection
    busy: Connection
    subscribed: Connection
    answers: int = 0
    broken: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def all(self) -> tuple[Connection, ...]:
        return (self.idle, self.busy, self.subscribed)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._keep_busy, name="busy connection", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close everything; harmless when called twice."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        for connection in self.all:
            connection.socket.close()

    def _keep_busy(self) -> None:
        """Count up; an answer that is missing, late or out of order ends it, with the reason."""
        try:
            while not self._stop.wait(_PACE):
                answer = self.busy.ask("INCR", _COUNTER)
                if answer != f":{self.answers + 1}":
                    raise OSError(f"after {self.answers} answers came {answer!r}")
                self.answers += 1
        except OSError as error:
            self.broken = str(error) or type(error).__name__


def hold(world: World) -> Held:
    """Open the three before anything of the mesh is there."""
    idle, busy, subscribed = (_open(world.web, world.cache.address, n) for n in ("idle", "busy", "subscribed"))
    held = Held(idle, busy, subscribed)
    held.busy.ask("DEL", _COUNTER)
    held.subscribed.socket.sendall(_command("SUBSCRIBE", CHANNEL))
    _read_lines(held.subscribed.socket, 6)
    held.start()
    return held


def open_connections(world: World, result: StepResult) -> None:
    """The agent of one end is killed and started again, the posture of the other changes: nothing is cut."""
    before = still_the_same(world)
    world.kill_agent(world.cache)
    world.start_agent(world.cache)
    for posture in ("observe", "permissive"):
        world.meshagent(world.web, "posture", posture, "--confirm", "0")
        world.wait(f"web in posture {posture}", lambda wanted=posture: _posture(world.web) == wanted)  # type: ignore[misc]
    for host in (world.web, world.cache):
        world.wait(f"{host.name} ready", lambda ready=host: is_ready(world, ready), timeout=30)  # type: ignore[misc]
    after = still_the_same(world)
    check(after > before, "the busy connection got no answer during all that")
    result.detail = (
        f"{', '.join(f'{c.name} (Redis client {c.client_id})' for c in world.held.all)}: "
        f"the same connections, {after} answers in a row, after enrolment, an agent's kill -9 and changed postures"
    )


def still_the_same(world: World) -> int:
    """Raises unless all three are the connections they were; the number of answers on the busy one so far.

    The idle one stays idle: only Redis is asked about it (``finish`` speaks on it in the end).
    """
    held: Held = world.held
    check(not held.broken, f"the busy connection broke: {held.broken}")
    listed = world.run(world.cache, "redis-cli", "client", "list").splitlines()
    for connection in held.all:
        there = any(line.startswith(f"{connection.key} ") for line in listed)
        check(there, f"{connection.name} is gone from Redis, {connection.key} is not in {listed}")
        now = (connection.socket.getsockname()[:2], connection.socket.getpeername()[:2])
        check(now == connection.addresses, f"{connection.name} was {connection.addresses}, is {now}")
    _hears(world, held.subscribed)
    answers = held.answers
    world.wait("the busy connection answering", lambda: held.broken or held.answers > answers, timeout=_ANSWER_WITHIN)
    check(not held.broken, f"the busy connection broke: {held.broken}")
    return held.answers


def finish(world: World) -> str:
    """The end of the story: they still are the same, and the idle one, after all that silence, answers."""
    answers = still_the_same(world)
    idle = world.held.idle
    check(idle.ask("CLIENT", "ID") == f":{idle.client_id}", "the idle connection is another one now")
    return f"the connections from before enrolment live on ({answers} answers in a row)"


def _posture(host: Host) -> str:
    return str(host.meshagent_json("status", check=False)["posture"])


def _hears(world: World, subscribed: Connection) -> None:
    """What is published on cache arrives here, and nothing else does."""
    text = f"message {time.monotonic_ns()}"
    world.cache.run(["redis-cli", "publish", CHANNEL, text])
    heard = _read_lines(subscribed.socket, 7)
    check(heard[2::2] == ["message", CHANNEL, text], f"the subscription heard {heard}")


# the little of RESP (redis.io/docs/reference/protocol-spec) that is needed


def _open(host: Host, address: str, name: str) -> Connection:
    opened = host.connect(address, PORT)
    opened.settimeout(_ANSWER_WITHIN)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client_id = int(_ask(opened, "CLIENT", "ID").removeprefix(":"))
    return Connection(name, opened, client_id, (opened.getsockname()[:2], opened.getpeername()[:2]))


def _ask(opened: socket.socket, *words: str) -> str:
    opened.sendall(_command(*words))
    return _read_lines(opened, 1)[0]


def _command(*words: str) -> bytes:
    parts = [f"*{len(words)}", *(part for word in words for part in (f"${len(word.encode())}", word))]
    return "".join(f"{part}\r\n" for part in parts).encode()


def _read_lines(opened: socket.socket, count: int) -> list[str]:
    """Exactly ``count`` lines. Raises ``OSError`` when the connection ends or stays silent."""
    data = b""
    while data.count(b"\r\n") < count:
        more = opened.recv(4096)
        if not more:
            raise ConnectionResetError("the connection was closed")
        data += more
    return data.decode().split("\r\n")[:count]
