"""The lab's name server, a process of its own: ``python -m meshagent.lab.resolver RECORDS LOG FD…``.

Authoritative for what RECORDS (JSON: name -> type -> values) says, NXDOMAIN else. Each question is one line of LOG.
The sockets come as inherited descriptors: datagram or stream, already bound.
"""

import contextlib
import json
import socket
import socketserver
import struct
import sys
import threading
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

_TTL = 30
_ALIASES = 8  # CNAMEs followed in one answer

Records = dict[str, dict[str, list[str]]]


class NameServer:
    """Answers from the records file, read again whenever it was replaced."""

    def __init__(self, records: Path, log: Path) -> None:
        self._path = records
        self._log = log.open("a", buffering=1)
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] = (0, 0)
        self._records: Records = {}

    def answer(self, wire: bytes, transport: str, source: str) -> bytes | None:
        """The answer to one message, or None for what isn't a question."""
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        if query.flags & dns.flags.QR or len(query.question) != 1:
            return None
        with self._lock:
            self._reload()
            self._record(query, transport, source)
            response = self._respond(query)
        limit = 65535 if transport == "tcp" else max(512, query.payload if query.edns >= 0 else 512)
        return _wire(response, limit)

    def _reload(self) -> None:
        found = self._path.stat()
        stamp = (found.st_ino, found.st_mtime_ns)
        if stamp != self._stamp:
            self._stamp, self._records = stamp, json.loads(self._path.read_text())

    def _record(self, query: dns.message.Message, transport: str, source: str) -> None:
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        self._log.write(json.dumps({"name": name, "type": kind, "transport": transport, "source": source}) + "\n")

    def _respond(self, query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query, recursion_available=True)
        response.flags |= dns.flags.AA
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        name = query.question[0].name.to_text(omit_final_dot=True).lower()
        for _ in range(_ALIASES):
            types = self._records.get(name)
            if types is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
                break
            found = kind if kind in types else "CNAME" if "CNAME" in types else ""
            if found:
                response.answer.append(dns.rrset.from_text(f"{name}.", _TTL, "IN", found, *types[found]))
            if found != "CNAME" or kind == "CNAME":
                break
            name = types["CNAME"][0].lower().rstrip(".")
        return response


def _wire(response: dns.message.Message, limit: int) -> bytes:
    try:
        return response.to_wire(max_size=limit)
    except dns.exception.TooBig:
        response.answer.clear()
        response.flags |= dns.flags.TC
        return response.to_wire(max_size=limit)


def serve_datagrams(server: NameServer, opened: socket.socket) -> None:
    """Answer datagrams for good."""
    while True:
        wire, peer = opened.recvfrom(65535)
        answer = server.answer(wire, "udp", peer[0])
        if answer is not None:
            with contextlib.suppress(OSError):  # the asker is gone
                opened.sendto(answer, peer)


class _Stream(socketserver.StreamRequestHandler):
    timeout = 30
    names: NameServer

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while len(head := self.rfile.read(2)) == 2:
                wire = self.rfile.read(struct.unpack("!H", head)[0])
                answer = self.names.answer(wire, "tcp", self.client_address[0])
                if answer is None:
                    return
                self.wfile.write(struct.pack("!H", len(answer)) + answer)


def serve_streams(server: NameServer, opened: socket.socket) -> None:
    """Answer TCP connections for good, a thread each."""
    handler = type("Handler", (_Stream,), {"names": server})
    front = socketserver.ThreadingTCPServer(("", 0), handler, bind_and_activate=False)
    front.daemon_threads = True
    front.socket.close()
    front.socket = opened
    front.serve_forever()


def main(arguments: list[str]) -> None:
    """Serve each inherited socket in a thread of its own."""
    server = NameServer(Path(arguments[0]), Path(arguments[1]))
    threads = []
    for number in arguments[2:]:
        opened = socket.socket(fileno=int(number))
        serve = serve_datagrams if opened.type == socket.SOCK_DGRAM else serve_streams
        threads.append(threading.Thread(target=serve, args=(server, opened)))
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main(sys.argv[1:])
