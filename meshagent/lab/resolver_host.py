"""The lab's name server, from the outside: its records, and what it was asked.

Its sockets are opened here and handed to the process, so that queries wait in them while it starts: nobody waits for
it. Records travel in a file that the process reads again when it changed.
"""

import json
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshagent.lab.host import Host


@dataclass(frozen=True, slots=True)
class Query:
    """One question the resolver was asked: lower-case name without trailing dot, type, ``udp``/``tcp``, asker's IP."""

    name: str
    type: str
    transport: str
    source: str


class Resolver:
    """Answers the names it was told, NXDOMAIN for everything else; by UDP (truncated when too big) and TCP."""

    def __init__(self, host: "Host") -> None:
        self.host = host
        self._records: dict[str, dict[str, list[str]]] = {}
        self._zone = host.private / "records.json"
        self._log = host.private / "queries.jsonl"
        self._log.touch()
        self._write()
        sockets = host.inside(self._bind)
        numbers = [opened.fileno() for opened in sockets]
        argv = [sys.executable, "-m", "meshagent.lab.resolver", str(self._zone), str(self._log), *map(str, numbers)]
        self.program = host.popen(argv, log="resolver", pass_fds=numbers)
        for opened in sockets:
            opened.close()

    def add(self, name: str, type: str, *values: str) -> None:
        """Answer ``name`` with these values, in zone-file notation (``A 10.0.0.1``, ``TXT "some text"``)."""
        self._records.setdefault(name.lower().rstrip("."), {}).setdefault(type.upper(), []).extend(values)
        self._write()

    def remove(self, name: str) -> None:
        """Forget a name: NXDOMAIN from now on."""
        self._records.pop(name.lower().rstrip("."), None)
        self._write()

    def queries(self) -> list[Query]:
        """Everything asked so far, in order."""
        return [Query(**json.loads(line)) for line in self._log.read_text().splitlines()]

    def _write(self) -> None:
        new = Path(f"{self._zone}.new")
        new.write_text(json.dumps(self._records))
        new.replace(self._zone)

    def _bind(self) -> list[socket.socket]:
        return [
            _bound(address, kind) for address in self.host.addresses for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)
        ]


def _bound(address: str, kind: socket.SocketKind) -> socket.socket:
    opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((address, 53))
    if kind == socket.SOCK_STREAM:
        opened.listen(64)
    return opened
