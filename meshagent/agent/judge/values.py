"""Facts as judgement sees them. Pure."""

from dataclasses import dataclass

from meshagent.model.address import IPAddress


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """An established TCP connection of this host and the program that holds it (empty and 0 when unknown)."""

    local_ip: IPAddress
    local_port: int
    remote_ip: IPAddress
    remote_port: int
    program: str = ""
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """The remote session that types: the local port it comes in on (0 unknown), its peer, and the program that serves
    it (``sshd``; empty when unknown)."""

    port: int = 0
    peer: IPAddress | None = None
    peer_port: int = 0
    program: str = ""

    def __str__(self) -> str:
        where = f" from {self.peer}" if self.peer else ""
        return f"your session{where}"
