"""A real little nameserver on UDP and TCP, by dnspython, whose manners can be chosen."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rrset

from tests.ports import free_port

BIG = 200  # addresses of big.example: 3.2 KB


class Nameserver:
    """``manner``: answer, silent, servfail, wrong-id, wrong-question. ``seen`` holds what was asked."""

    def __init__(self, ip: str, port: int, manner: str = "answer", answer: str = "192.0.2.1") -> None:
        self.ip, self.port, self.manner, self.answer = ip, port, manner, answer
        self.seen: list[bytes] = []
        self.sources: list[int] = []
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        self._udp = socket.socket(family, socket.SOCK_DGRAM)
        self._udp.bind((ip, port))
        self._tcp = socket.socket(family, socket.SOCK_STREAM)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind((ip, port))
        self._tcp.listen()
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in (self._serve_udp, self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for sock in (self._udp, self._tcp):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)  # a thread inside recvfrom would keep the port open beyond close()
        for sock in (self._udp, self._tcp):
            sock.close()

    def _serve_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                query, client = self._udp.recvfrom(65535)
                if not client:  # shut down
                    return
                self.sources.append(client[1])
                if reply := self._reply(query, 512):
                    self._udp.sendto(reply, client)

    def _serve_tcp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._tcp.accept()
                threading.Thread(target=self._serve_connection, args=(connection,), daemon=True).start()

    def _serve_connection(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as stream:
            while length := int.from_bytes(stream.read(2), "big"):
                query = stream.read(length)
                if reply := self._reply(query, 65535):
                    connection.sendall(len(reply).to_bytes(2, "big") + reply)
                    if b"transfer" in query:  # two messages, as a zone transfer has
                        connection.sendall(len(reply).to_bytes(2, "big") + reply)

    def _reply(self, query: bytes, room: int) -> bytes:
        self.seen.append(query)
        if self.manner == "silent":
            return b""
        try:
            message = dns.message.from_wire(query)
        except dns.exception.DNSException:
            return b""
        reply = dns.message.make_response(message)
        if self.manner == "servfail":
            reply.set_rcode(dns.rcode.SERVFAIL)
            return reply.to_wire()
        if self.manner == "wrong-id":
            reply.id ^= 1
        if self.manner == "wrong-question":
            reply.question = [dns.rrset.from_text("evil.example.", 0, "IN", "A").copy()]
        name = message.question[0].name
        count = BIG if b"big" in query else 1
        rows = [self.answer] if count == 1 else [f"192.0.{i // 256}.{i % 256}" for i in range(count)]
        reply.answer = [dns.rrset.from_text(name, 60, "IN", "A", *rows)]
        wire = reply.to_wire(max_size=65535)
        room = max(room, message.payload) if room == 512 else room
        if len(wire) > room:
            reply.answer = []
            reply.flags |= dns.flags.TC
            wire = reply.to_wire()
        return wire


@contextlib.contextmanager
def nameservers(*manners: str) -> Iterator[list[Nameserver]]:
    """Servers on 127.0.0.11, .12 … that share one free port."""
    port = free_port()
    servers = [Nameserver(f"127.0.0.{11 + i}", port, manner, f"192.0.2.{1 + i}") for i, manner in enumerate(manners)]
    try:
        yield servers
    finally:
        for server in servers:
            server.close()
