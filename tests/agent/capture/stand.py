"""A captured lab host with a real guard, real sockets and small servers that say who answered.

Every server speaks first: ``<name> <caller's address> <what was dialled>``. So one line tells a test where a
connection ended and what the application saw.
"""

import contextlib
import re
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, TypeVar

from meshagent.agent.capture import intent as intents
from meshagent.agent.capture import iptables
from meshagent.agent.capture.apply import Applied, Applier
from meshagent.agent.capture.values import HostFacts, Intent, Wishes
from meshagent.guard import legacy_text
from meshagent.guard.client import GuardClient, command
from meshagent.guard.decide import HUNG_GATE
from meshagent.lab import Lab
from meshagent.lab.host import Host
from meshagent.lab.program import Program
from meshagent.lab.waiting import wait_until
from meshagent.model.address import MeshAddress
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService

T = TypeVar("T")

PROXY_UID = 61001
OTHER_UID = 61002
SO_ORIGINAL_DST = 80  # linux/netfilter_ipv4.h, and IP6T_SO_ORIGINAL_DST
SO_MARK = 36  # asm-generic/socket.h

VIRTUAL = {4: "240.240.0.7", 6: "2001:2::7"}


def mesh(address: str, port: int) -> MeshAddress:
    return MeshAddress(ip_address(address), port)


def service(name: str, port: int) -> DeclaredService:
    return DeclaredService(name, port, port)


class Server:
    """Speaks first, then echoes; one thread for all connections. ``close`` ends it and its connections."""

    def __init__(self, listener: socket.socket, name: str) -> None:
        self.listener, self.name = listener, name
        self.accepted = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=f"server {name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._wake.send(b"x")
            self._thread.join()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    self._end()
                    return
                if key.fileobj is self.listener:
                    self._accept()
                else:
                    self._echo(key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        connection, peer = self.listener.accept()
        self.accepted += 1
        with contextlib.suppress(OSError):
            connection.sendall(f"{self.name} {peer[0]} {original_destination(connection)}\n".encode())
        self._selector.register(connection, selectors.EVENT_READ)

    def _echo(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(1 << 16)
            if data:
                connection.sendall(data)
                return
        except OSError:
            pass
        self._selector.unregister(connection)
        connection.close()

    def _end(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        self._wake.close()


def original_destination(connection: socket.socket) -> str:
    """``address port`` as the caller dialled it: SO_ORIGINAL_DST, or the socket's own address without NAT."""
    try:
        if connection.family == socket.AF_INET:
            port, raw = struct.unpack("!2xH4s8x", connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
            return f"{socket.inet_ntop(socket.AF_INET, raw)} {port}"
        port, raw = struct.unpack("!2xH4x16s4x", connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28))
        return f"{socket.inet_ntop(socket.AF_INET6, raw)} {port}"
    except OSError:  # no conntrack entry: nothing was ever tracked
        return " ".join(str(part) for part in connection.getsockname()[:2])


@dataclass
class Stand:
    """``host`` is captured; ``peer`` is a machine outside the mesh. ``family`` is 4 or 6, ``backend`` as configured."""

    lab: Lab
    host: Host
    peer: Host
    family: int
    guard: GuardClient
    guard_program: Program
    applier: Applier
    backend: str = "nft"
    servers: list[Server] = field(default_factory=list)
    applied: Intent | None = None

    # --- capture

    @property
    def facts(self) -> HostFacts:
        return HostFacts(
            proxy_uid=PROXY_UID,
            own_addresses=frozenset(ip_address(address) for address in self.host.addresses),
            nameservers=tuple(ip_address(address) for address in self.lab.resolver.host.addresses),
            sshd_ports=frozenset({22}),
            nft_usable=self.backend == "nft",
            iptables_usable=self.backend == "iptables",
        )

    def intent(
        self,
        posture: Posture = Posture.PERMISSIVE,
        *addresses: MeshAddress,
        facts: Mapping[str, Any] | None = None,
        **wishes: Any,
    ) -> Intent:
        """``facts``: fields of ``HostFacts`` that are other than this host's."""
        return intents.decide(
            Wishes(posture, mesh=frozenset(addresses), **wishes), replace(self.facts, **(facts or {}))
        )

    def apply(self, intent: Intent) -> Applied:
        self.applied = intent
        return self.host.inside(lambda: self.applier.apply(intent))

    def capture(self, posture: Posture = Posture.PERMISSIVE, *addresses: MeshAddress, **wishes: Any) -> Intent:
        """Apply a posture; returns the intent."""
        intent = self.intent(posture, *addresses, **wishes)
        self.apply(intent)
        return intent

    def refuse_as_if_hung(self) -> None:
        """What the guard does for a proxy that hangs; the guard itself is gone then (it would mend what it didn't do).
        Needs rules of policy closed, which outlive it."""
        self.guard_program.kill()
        if self.backend == "nft":
            self.host.run(["nft", "add element inet meshagent hung_gate { tcp : goto nowhere }"])
            return
        assert self.applied is not None
        for version, text in legacy_text.parts(iptables.render(self.applied).gates[HUNG_GATE].bypass).items():
            program = f"{'iptables' if version == 4 else 'ip6tables'}-legacy-restore"
            self.host.run([program, "--noflush", "-w", "5"], input=text)

    def remove(self) -> None:
        self.host.inside(self.applier.remove)

    def ruleset(self) -> str:
        """Everybody's rules in the words of the backend, without counters."""
        if self.backend == "nft":
            return self.host.run(["nft", "--stateless", "list", "ruleset"]).stdout
        saves = (self.host.run([f"{word}-legacy-save"]).stdout for word in ("iptables", "ip6tables"))
        lines = "".join(saves).splitlines()
        return "\n".join(re.sub(r" \[\d+:\d+\]$", "", line) for line in lines if not line.startswith("#"))

    # --- addresses

    @property
    def virtual(self) -> str:
        return VIRTUAL[self.family]

    @property
    def loopback(self) -> str:
        return "127.0.0.1" if self.family == 4 else "::1"

    def own(self, host: Host) -> str:
        return host.address4 if self.family == 4 else host.address6

    @property
    def address_family(self) -> socket.AddressFamily:
        return socket.AF_INET if self.family == 4 else socket.AF_INET6

    # --- sockets

    def serve(self, host: Host, port: int, name: str, address: str = "") -> Server:
        any_address = "0.0.0.0" if self.family == 4 else "::"
        server = Server(host.listen(port, address or any_address), name)
        self.servers.append(server)
        return server

    def proxy(self) -> Server:
        """What stands where Envoy's outbound listener is."""
        return self.serve(self.host, 15001, "proxy", self.loopback)

    def dial(self, address: str, port: int, host: Host | None = None) -> str:
        """Who answered: the first line. Raises ``OSError`` as connect does."""
        with self.open(address, port, host) as connection:
            return connection.greeting

    def open(self, address: str, port: int, host: Host | None = None) -> "Connection":
        return Connection((host or self.host).connect(address, port))

    def dial_as(self, uid: int, address: str, port: int, mark: int = 0) -> str:
        """As ``dial`` from the host under another uid (or with a mark): the first line, or the error's name."""
        words = [address, str(port), str(uid), str(mark)]
        return self.host.run([sys.executable, "-c", _DIAL, *words]).stdout.strip()


class Connection:
    """An open connection that has read its greeting."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._file = connection.makefile("rwb")
        self.greeting = self._file.readline().decode().strip()

    def says(self, text: str = "still here") -> bool:
        """True when the other end echoes."""
        self._file.write(text.encode() + b"\n")
        self._file.flush()
        return self._file.readline().decode() == text + "\n"

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_DIAL = """
import errno, os, socket, sys
address, port, uid, mark = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if not mark:  # a socket belongs to who made it; only root may mark one
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
if mark:
    s.setsockopt(socket.SOL_SOCKET, 36, mark)
s.settimeout(3)
try:
    s.connect((address, port))
    print(s.makefile().readline().strip())
except OSError as e:
    print(errno.errorcode.get(e.errno, "timeout"))
"""


@contextlib.contextmanager
def make_stand(lab: Lab, family: int, backend: str = "nft", without: str = "") -> Iterator[Stand]:
    """A host with a running guard, and a peer, in an open lab; the guard ends with the block.

    ``without``: what the guard does without, as on an older kernel (guard/tables.py).
    """
    name = f"v{family}-{len(lab.hosts)}"
    host, peer = lab.host(f"host-{name}"), lab.host(f"peer-{name}")
    program, client = start_guard(host, without)
    stand = Stand(lab, host, peer, family, client, program, Applier(client), backend)
    try:
        yield stand
    finally:
        for server in stand.servers:
            server.close()
        client.close()
        stand.guard_program.stop()


def start_guard(host: Host, without: str = "") -> tuple[Program, GuardClient]:
    """A guard process on ``host``, answering."""
    program = host.popen([*command(host.root), *(["--without", without] if without else [])], log="guard")
    client = GuardClient(host.root / "run/meshagent/guard.sock")
    wait_until(client.state, what="the guard to answer")
    return program, client


def in_thread(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread
