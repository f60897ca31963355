"""The guard's life: one selector over the socket, its clients, the watched processes and the rule announcements.

Start: lock, socket, kernel context. Stop (SIGTERM, ``quit``): our table goes, the anchor stays, so that open
connections live on; ending the guard is the operator's emergency switch.
"""

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshagent.guard import methods, wire
from meshagent.guard.backends import Nft, NoNft, open_nft, why_no_legacy
from meshagent.guard.libnftables import Context, NftError
from meshagent.guard.log import say
from meshagent.guard.notices import Notices
from meshagent.guard.perform import Guard
from meshagent.guard.rulewatch import Watch
from meshagent.guard.succession import Estate, Successor, become, inherit, successor_from
from meshagent.guard.wire import LineBuffer, RequestError
from meshagent.model.marks import ANCHOR_TABLE, TABLE
from meshagent.model.paths import Paths

#: The agent holds one connection, the CLI and a second agent short ones.
_MAX_CLIENTS = 16
#: The dead-man is checked at least this often: select sleeps by the monotonic clock, which stops in suspend.
_TICK_SECONDS = 5.0

#: What is known is written down once nothing has happened for so long, and at the latest so much later.
_IDLE_SECONDS, _WRITE_SECONDS = 0.01, 0.5


class GuardStartError(Exception):
    """The guard can't start; the text is one line for a person."""


@dataclass
class _Client:
    connection: socket.socket
    lines: LineBuffer = field(default_factory=lambda: LineBuffer(wire.MAX_REQUEST))
    out: bytearray = field(default_factory=bytearray)
    greeted: bool = False


class Loop:
    """Everything the guard waits for. ``run`` returns when the guard was told to end."""

    def __init__(self, guard: Guard, listener: socket.socket) -> None:
        self._guard, self._listener = guard, listener
        self._selector = selectors.DefaultSelector()
        self._watch = _announcements()
        self._clients: dict[int, _Client] = {}
        self._running = True
        self.asked_by_person = False
        self._notices = Notices()
        self._unwritten_since: float | None = None
        self.successor: Successor | None = None
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        if self._watch is not None:
            self._selector.register(self._watch, selectors.EVENT_READ, self._rules_announced)

    def stop(self, by_person: bool = False) -> None:
        self._running, self.asked_by_person = False, by_person

    def run(self, wakeup: int) -> None:
        """Serve until stopped, or until a successor is named; ``wakeup`` turns readable on a signal."""
        if wakeup not in self._selector.get_map():
            self._selector.register(wakeup, selectors.EVENT_READ, lambda _: os.read(wakeup, 512))
        self._notices.ready()
        while self._running and not self.successor:
            self._notices.beat(self._guard.state, time.monotonic())
            self._follow_processes()
            due = self._guard.due()
            if due == 0.0:
                self._guard.fire()
                continue
            wait = _TICK_SECONDS if due is None else min(due, _TICK_SECONDS)
            for sooner in (self._guard.look_in(), self._guard.watching.beat_in()):
                wait = wait if sooner is None else min(wait, sooner)
            if self._unwritten_since is not None:
                wait = min(wait, _IDLE_SECONDS)
            wait = self._notices.pause(wait, time.monotonic())
            ready = self._selector.select(wait if self._guard.settled else 0)
            self._guard.look()
            if not ready and not self._guard.settled:
                self._guard.settle()
            for key, events in ready:
                if self._selector.get_map().get(key.fd) is key:  # an earlier event of this round may have closed it
                    key.data(events)
            self._heal(self._guard.watching.beat)
            self._write_down(idle=not ready)

    def _write_down(self, *, idle: bool) -> None:
        """For the next guard, should this one be killed: nobody waits for it, but it doesn't wait for ever either."""
        now = time.monotonic()
        if not self._guard.unwritten:
            self._unwritten_since = None
        elif idle or (self._unwritten_since is not None and now - self._unwritten_since > _WRITE_SECONDS):
            self._guard.remember()
            self._unwritten_since = None
        elif self._unwritten_since is None:
            self._unwritten_since = now

    # --- clients -----------------------------------------------------------------------------------------------------

    def _accept(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _address = self._listener.accept()
            if len(self._clients) >= _MAX_CLIENTS or not _is_ours(connection):
                connection.close()
                return
            connection.setblocking(False)
            client = _Client(connection)
            self._clients[connection.fileno()] = client
            self._selector.register(connection, selectors.EVENT_READ, lambda events: self._talk(client, events))

    def _talk(self, client: _Client, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                self._read(client)
            if client.out:
                sent = client.connection.send(client.out)
                del client.out[:sent]
        except BlockingIOError:
            pass
        except (OSError, RequestError):
            self._drop(client)
            return
        if client.connection.fileno() >= 0:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.out else 0)
            self._selector.modify(client.connection, wanted, lambda events: self._talk(client, events))

    def _read(self, client: _Client) -> None:
        data = client.connection.recv(1 << 16)
        if not data:
            raise ConnectionResetError
        for line in client.lines.feed(data):
            client.out += self._answer(client, line)
            if len(client.out) > wire.MAX_ANSWER:
                raise RequestError("too-large", "the client doesn't read its answers")

    def _answer(self, client: _Client, line: bytes) -> bytes:
        number = 0
        try:
            request = wire.parse_request(line)
            number = request.id
            return wire.answer(number, self._result(client, request))
        except RequestError as error:
            return wire.failure(number, error)
        except NftError as error:
            return wire.failure(number, RequestError("nft-failed", str(error)))

    def _result(self, client: _Client, request: wire.Request) -> object:
        if request.method == "hello":
            result = methods.hello(self._guard, request.params)
            client.greeted = True
            return result
        if request.method == "succeed":  # whichever version asks: it is another one by its nature
            self.successor = successor_from(request.params)
            return {}
        if not client.greeted:
            raise RequestError("wrong-version", "the first request must be hello")
        if request.method == "quit":
            self.stop()
            return {}
        return methods.dispatch(self._guard, request)

    def _drop(self, client: _Client) -> None:
        self._clients.pop(client.connection.fileno(), None)
        self._selector.unregister(client.connection)
        client.connection.close()

    # --- events ------------------------------------------------------------------------------------------------------

    def _follow_processes(self) -> None:
        """Wait on exactly the descriptors the guard has open now."""
        for done in self._guard.watching.retired:
            with contextlib.suppress(KeyError):  # opened and replaced within one round
                self._selector.unregister(done.descriptor)
            done.close()
        self._guard.watching.retired.clear()
        probe = self._guard.watching.probe
        if probe is not None and probe.descriptor not in self._selector.get_map():
            self._selector.register(
                probe.descriptor, selectors.EVENT_READ, lambda _: self._heal(self._guard.watching.answered)
            )
        lock = self._guard.legacy.lock
        if lock is not None and lock.fileno() not in self._selector.get_map():
            self._selector.register(lock, selectors.EVENT_READ, lambda _: self._guard.legacy.used())
        for gate, pidfd in self._guard.watching.pidfds.items():
            if pidfd.descriptor not in self._selector.get_map():
                self._selector.register(pidfd.descriptor, selectors.EVENT_READ, self._died(gate))

    def _died(self, gate: str) -> Any:
        return lambda _events: self._guard.watching.died(gate)

    def _rules_announced(self, _: int) -> None:
        assert self._watch is not None
        foreign, lost = self._watch.read()
        if lost:
            self._heal(self._guard.compare)
        if foreign is not None:
            self._heal(lambda: self._guard.rules_changed(foreign.pid, foreign.name, foreign.tables))

    def _heal(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (RequestError, NftError) as error:
            say("could not change the rules", error=str(error))

    def finish(self) -> None:
        """Our table goes, the anchor stays; answers already given are sent."""
        self._notices.stopping()
        for client in list(self._clients.values()):
            with contextlib.suppress(OSError):
                client.connection.send(client.out)
            client.connection.close()
        try:
            self._guard.remove(anchor=False)
        except RequestError as error:
            say("could not remove the rules", error=error.message)
        self._guard.remember()


def serve(paths: Paths, memory: int | None = None, without: Collection[str] = ()) -> None:
    """The whole life of the guard of one root; with ``memory`` it goes on with what another left there.

    ``without``: what the kernel has and is not to be used (tables.py).
    Raises ``GuardStartError``.
    """
    paths.run.mkdir(parents=True, exist_ok=True, mode=0o755)
    estate = inherit(memory) if memory is not None else None
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(_single_instance(paths.run / "guard.lock", estate))
        context = _context()
        stack.callback(context.close)
        if estate is not None and isinstance(context, Context) and estate.nft >= 0:
            context.adopt(estate.nft)
        guard = Guard(context, paths.state / "rollback.json", paths.guard_state, without)
        if estate is not None:
            guard.follow(estate)
        else:
            guard.start()
        listener = socket.socket(fileno=estate.listener) if estate is not None else _listen(paths.guard_socket)
        stack.enter_context(listener)
        stack.callback(lambda: paths.guard_socket.unlink(missing_ok=True))
        loop = Loop(guard, listener)
        paths.guard_stopped.unlink(missing_ok=True)
        wakeup = _signals(loop)
        up = {"owner": guard.tables.owner_supported, "keep": guard.tables.keep_supported}
        say("guard is up", pid=os.getpid(), **up, followed=estate is not None)
        if estate is not None:
            guard.resume()
        loop.run(wakeup)
        while loop.successor is not None:
            _hand_on(loop, guard, lock, listener)
            loop.run(wakeup)
        if loop.asked_by_person:
            paths.guard_stopped.touch(mode=0o644)  # before the agent can notice: it must not start another
        loop.finish()
        say("guard ended, its table is removed")


def _hand_on(loop: Loop, guard: Guard, lock: int, listener: socket.socket) -> None:
    """Returns only when the successor can't be run; then this one goes on."""
    successor, loop.successor = loop.successor, None
    assert successor is not None
    nft = guard.context.descriptor if isinstance(guard.context, Context) else -1
    try:
        if isinstance(guard.context, Context) and nft < 0:
            raise OSError("libnftables doesn't show its socket")
        say("another version of the guard follows", argv=" ".join(successor.argv))
        become(successor, Estate(guard.state, nft, lock, listener.fileno(), guard.started_at))
    except OSError as error:
        say("the other version can't follow, this one goes on", error=str(error))


def preflight() -> None:
    """Whether a guard of this version can work on this host. Raises ``GuardStartError``."""
    _context().close()


def _context() -> Nft:
    """Nftables, or what stands for it where only legacy iptables can be used."""
    context = open_nft()
    if isinstance(context, NoNft) and (why := why_no_legacy()):
        raise GuardStartError(f"nftables can't be used here: {context.why}; legacy iptables neither: {why}")
    return context


def _announcements() -> Watch | None:
    """None on a kernel without nf_tables, where nobody can change its rules."""
    with contextlib.suppress(OSError):
        return Watch(TABLE, ANCHOR_TABLE)
    return None


@contextlib.contextmanager
def _single_instance(path: Path, estate: Estate | None) -> Iterator[int]:
    """Hold the lock of this root, or go on holding it; the kernel frees it however we end."""
    if estate is not None:
        yield estate.lock
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GuardStartError(f"another guard of this root is running ({path} is locked)") from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield descriptor
    finally:
        os.close(descriptor)


def _listen(path: Path) -> socket.socket:
    """A stale socket may be removed: we hold the lock, so nobody serves it."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(128)
    return listener


def _is_ours(connection: socket.socket) -> bool:
    """Root or our own uid; the file mode says the same, this also holds where a mount ignores modes."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return uid in (0, os.geteuid())


def _signals(loop: Loop) -> int:
    """SIGTERM and SIGINT end the guard; a hang-up of the terminal that started it doesn't. Returns the wake-up end."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.stop(by_person=True))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return reader
