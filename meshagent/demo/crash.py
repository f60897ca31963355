"""Step ``envoy-killed``: a proxy dies; new connections work again within a second, and what went around is counted.

web's posture leaves the way open: while its Envoy is dead, a claimed literal whose machine lives (db's own address)
is reached directly, and the kernel counts each such connection. A name's virtual address has no direct way; it is
refused until Envoy is back. The wire is the witness of the count: a direct connection is a SYN to port 3306.
"""

import os
import signal
import socket
import threading
import time
from dataclasses import dataclass, field

from meshagent.demo.literal import PORT
from meshagent.demo.narrator import StepResult, check
from meshagent.demo.wire import CACHE
from meshagent.demo.world import World
from meshagent.lab import wait_until
from meshagent.machine import process

#: Back within this, in seconds, counted from the kill.
BACK_WITHIN = 1.0

#: How long after the kill a connection to a literal may still fail: then the kernel's verdict has flipped.
BYPASS_WITHIN = 0.25
_REDIS = 6379


@dataclass
class Clients:
    """Clients that connect again and again; called in web's network, in a thread of its own."""

    literal: str
    virtual: str
    killed: float = 0.0
    dead: bool = False
    back: float = 0.0
    literal_ok: int = 0
    literal_failed: list[tuple[float, str]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stop.is_set():
            self._try_literal()
            self._try_virtual()

    def stop(self) -> None:
        self._stop.set()

    def _try_literal(self) -> None:
        """MariaDB speaks first: one byte of its greeting proves that the connection reached it."""
        try:
            with socket.create_connection((self.literal, PORT), 2) as client:
                if not client.recv(1):
                    raise ConnectionResetError("closed without a greeting")
            self.literal_ok += 1
        except OSError as error:
            self.literal_failed.append((round(time.monotonic() - self.killed, 3), str(error)))

    def _try_virtual(self) -> None:
        after = self.dead
        try:
            with socket.create_connection((self.virtual, _REDIS), 2) as client:
                client.sendall(b"PING\r\n")
                if client.recv(7) == b"+PONG\r\n" and after and not self.back:
                    self.back = time.monotonic()
        except OSError:
            return


def envoy_killed(world: World, result: StepResult) -> None:
    """kill -9 under load of new connections."""
    virtual = world.run(world.web, "getent", "ahostsv4", CACHE).split()[0]
    clients = Clients(world.db.address, virtual)
    counted = went_around(world)
    old = _proxy(world)
    caller = threading.Thread(target=world.web.inside, args=(clients.run,), name="clients on web", daemon=True)
    with world.web.capture(f"dst host {world.db.address} and tcp dst port {PORT} and tcp[tcpflags] = tcp-syn") as seen:
        caller.start()
        try:
            world.wait("clients at work", lambda: clients.literal_ok > 3)
            world.tell.command("web", f"kill -9 {old}  # Envoy")
            clients.killed = time.monotonic()
            os.kill(old, signal.SIGKILL)
            wait_until(lambda: process.start_time(old) is None, interval=0.0005, what="the old Envoy being dead")
            clients.dead = True
            world.wait("Envoy is back", lambda: clients.back, timeout=10)
            world.wait("captured again", lambda: _recaptured(world, old), timeout=10)
        finally:
            clients.stop()
            caller.join()
    took, new, around = clients.back - clients.killed, _proxy(world), went_around(world) - counted
    check(new != old, f"Envoy is still process {old}")
    check(took <= BACK_WITHIN, f"new connections by name worked only after {took:.2f} s")
    direct = len(seen.packets())
    check(around == direct, f"{direct} connections went around the proxy, {around} were counted")
    late = [failure for failure in clients.literal_failed if failure[0] > BYPASS_WITHIN]
    check(not late, f"connections to the literal failed long after the kill: {late[:5]}")
    world.tell.note(f"capture show on web: {around} connection(s) around the proxy while it was dead")
    result.detail = (
        f"Envoy {old} killed, {new} serves; by name again after {took * 1000:.0f} ms; "
        f"{around} connections to {world.db.address} went around meanwhile, all counted"
    )


def _proxy(world: World) -> int:
    return int(world.web.meshagent_json("status", check=False)["proxy"]["pid"])


def _recaptured(world: World, old: int) -> bool:
    status = world.web.meshagent_json("status", check=False)
    return bool(status["proxy"]["pid"] not in (old, None) and not status["capture"]["bypassed_since"])


def went_around(world: World) -> int:
    """As ``meshagent capture show`` on web counts them."""
    counters = world.web.meshagent_json("capture", "show")["counters"]
    return sum(row["packets"] for row in counters if row["chain"] == "around_proxy")
