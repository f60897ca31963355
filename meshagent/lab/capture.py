"""What was on a host's wire: tcpdump into a file, exactly from ready to stop.

tcpdump says "listening" once its socket is open, so nothing after that is missed. To be sure that everything sent
before ``stop`` is in the file, a marker datagram goes last and is waited for: packets are written in order.
"""

import secrets
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from meshagent.lab.waiting import wait_until
from meshagent.machine import process

if TYPE_CHECKING:
    from meshagent.lab.host import Host
    from meshagent.lab.program import Program

_MARKER_PORT = 9  # discard (RFC 863)
_GLOBAL_HEADER = 24
_RECORD_HEADER = struct.Struct("<IIII")


class Capture:
    """Packets of one interface of one host that match a tcpdump ``filter`` (empty: all).

    Use as context manager, or ``start``/``stop``. Afterwards read ``packets()``, ``contains()`` or ``tshark()``.
    """

    def __init__(self, host: "Host", filter: str, interface: str) -> None:
        self._host = host
        self._marker = f"meshagent lab marker {secrets.token_hex(8)}".encode()
        self._filter = f"({filter}) or (udp dst port {_MARKER_PORT})" if filter else ""
        self._interface = interface
        self._program: Program | None = None
        self.file: Path = host.private / f"capture-{secrets.token_hex(4)}.pcap"

    def start(self) -> "Capture":
        """Returns when packets are being taken."""
        argv = ["tcpdump", "--immediate-mode", "-U", "-n", "-B", "16384", "-s", "0", "-Z", "root"]
        argv += ["-i", self._interface, "-w", str(self.file), *([self._filter] if self._filter else [])]
        program = self._host.popen(argv, log=self.file.stem)
        self._program = program
        wait_until(lambda: "listening on" in program.text() or not program.alive, what="tcpdump listening")
        if not program.alive:
            raise process.ProgramError("capture-failed", argv, f"ended: {program.tail()}", returncode=program.wait())
        return self

    def stop(self) -> None:
        """Returns when everything that passed before this call is in the file; harmless when called twice."""
        program, self._program = self._program, None
        if program is None:
            return
        try:
            wait_until(self._marked, what=f"the marker in the capture on {self._interface}", interval=0.05)
        finally:
            program.stop(number=signal.SIGINT)

    def _marked(self) -> bool:
        self._host.inside(self._send_marker)
        return self._marker in self.file.read_bytes()

    def _send_marker(self) -> None:
        target = self._host.lab.gateway(self._host) if self._interface != "lo" else "127.0.0.1"
        with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(self._marker, (target, _MARKER_PORT))

    def packets(self) -> list[bytes]:
        """The frames as they were on the wire, without the marker's."""
        return [frame for frame in self._frames() if self._marker not in frame]

    def contains(self, payload: bytes) -> bool:
        """True when some packet carries ``payload`` in one piece."""
        return any(payload in frame for frame in self.packets())

    def tshark(self, display_filter: str, *fields: str, timeout: float = 60.0) -> list[list[str]]:
        """The named fields of each packet that matches a Wireshark display filter."""
        if not fields:
            fields = ("frame.number",)
        wanted = f"({display_filter}) && !(udp.dstport == {_MARKER_PORT})" if display_filter else "tcp"
        argv = ["tshark", "-r", str(self.file), "-Y", wanted, "-T", "fields"]
        for field in fields:
            argv += ["-e", field]
        out = process.run(argv, timeout=timeout, limit=64 << 20).stdout
        return [line.split("\t") for line in out.splitlines()]

    def _frames(self) -> Iterator[bytes]:
        data = self.file.read_bytes()
        offset = _GLOBAL_HEADER
        while offset + _RECORD_HEADER.size <= len(data):
            _, _, length, _ = _RECORD_HEADER.unpack_from(data, offset)
            offset += _RECORD_HEADER.size
            yield data[offset : offset + length]
            offset += length

    def __enter__(self) -> "Capture":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
