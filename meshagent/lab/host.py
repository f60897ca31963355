"""One host of a lab: run programs there, open sockets there, read its files, see what is on its wire."""

import json
import os
import socket as network
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from meshagent.lab import netns
from meshagent.lab.capture import Capture
from meshagent.lab.program import Program
from meshagent.lab.snapshot import Snapshot, take
from meshagent.machine import process
from meshagent.machine.process import Argv

if TYPE_CHECKING:
    from meshagent.lab.lab import Lab

T = TypeVar("T")

#: What a program on a host inherits from this process's environment; SSH_* of a developer's own session must not.
_INHERITED = ("PATH", "TERM", "TZ", "NO_COLOR")
_INHERITED_PREFIXES = ("MESHAGENT_", "PYTHON", "COVERAGE_")


@dataclass
class Host:
    """A lab host. ``root`` is what the agent or hub under test gets as ``--root``; ``private`` is the lab's own
    directory for logs and for the data of legacy services. ``address4``/``address6`` are empty where the lab has no
    such family. ``link`` is the switch's end of its cable."""

    lab: "Lab"
    name: str
    root: Path
    private: Path
    address4: str
    address6: str
    namespaces: netns.Namespaces
    link: str = ""

    @property
    def address(self) -> str:
        """The address of the lab's first family."""
        return self.address4 if self.lab.families[0] == 4 else self.address6

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(address for address in (self.address4, self.address6) if address)

    # --- programs

    def enter(self, argv: Argv, *, user: str = "", cwd: str = "/") -> list[str]:
        """The command line that runs ``argv`` on this host, from anywhere on this machine as root."""
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"] if user else []
        nsenter = ["nsenter", f"--target={self.namespaces.holder}", "--net", "--mount", "--uts", f"--wdns={cwd}", "--"]
        return [*nsenter, *as_user, *(os.fspath(word) for word in argv)]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of programs here: small, and ``MESHAGENT_ROOT`` set to this host's root."""
        kept = {k: v for k, v in os.environ.items() if k in _INHERITED or k.startswith(_INHERITED_PREFIXES)}
        return {**kept, "HOME": "/root", "LANG": "C.UTF-8", "MESHAGENT_ROOT": str(self.root), **(more or {})}

    def run(
        self,
        argv: Argv,
        *,
        input: str | bytes | None = None,
        timeout: float = 20.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        user: str = "",
        cwd: str = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end; raises ``ProgramError`` when it fails (unless ``check=False``)."""
        command = self.enter(argv, user=user, cwd=cwd)
        return process.run(command, input=input, timeout=timeout, check=check, env=self.environment(env))

    def popen(
        self,
        argv: Argv,
        *,
        log: str = "",
        env: Mapping[str, str] | None = None,
        user: str = "",
        cwd: str = "/",
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
    ) -> Program:
        """Start a program here; it ends with the lab at the latest. ``log`` names its log file (default: its name)."""
        path = self.private / f"{log or Path(os.fspath(argv[0])).name}.log"
        command = self.enter(argv, user=user, cwd=cwd)
        with path.open("ab") as output:
            begins_at = output.tell()
            popen = self.lab.spawn(command, stdin, output, self.environment(env), pass_fds)
        program = Program([os.fspath(part) for part in argv], popen, path, begins_at)
        self.lab.programs.append(program)
        return program

    def python(self, code: str, *args: str, timeout: float = 20.0, check: bool = True) -> str:
        """Run a Python snippet here (arguments in ``sys.argv[1:]``) and return what it printed."""
        return self.run([sys.executable, "-c", code, *args], timeout=timeout, check=check).stdout

    def meshagent(
        self,
        *args: str,
        input: str | None = None,
        timeout: float = 60.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``meshagent --root <root> args…`` here."""
        return self.run(self.meshagent_argv(*args), input=input, timeout=timeout, check=check, env=env)

    def meshagent_json(self, *args: str, timeout: float = 60.0, check: bool = True) -> Any:
        """``meshagent … -o json``, decoded; None when nothing was printed."""
        text = self.meshagent(*args, "-o", "json", timeout=timeout, check=check).stdout
        return json.loads(text) if text.strip() else None

    def start_meshagent(self, *args: str, log: str = "", env: Mapping[str, str] | None = None) -> Program:
        """Start ``meshagent --root <root> args…`` here; log name by default ``meshagent-<first word>``."""
        return self.popen(self.meshagent_argv(*args), log=log or "-".join(["meshagent", *args[:1]]), env=env)

    def meshagent_argv(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "meshagent.cli.entry", "--root", str(self.root), *args]

    def processes(self) -> list[int]:
        """Pids of the living processes here, without the one that holds the namespaces."""
        found = netns.members({self.namespaces.net})
        return [pid for pid in found if pid != self.namespaces.holder and process.start_time(pid) is not None]

    # --- sockets

    def inside(self, function: Callable[[], T]) -> T:
        """Call ``function`` in this host's network (not in its files); sockets it opens stay in that network."""
        return netns.inside(self.namespaces.holder, function)

    def socket(self, family: int = network.AF_INET, kind: int = network.SOCK_STREAM) -> network.socket:
        """A socket of this host's network, to be used and closed by the caller."""
        return self.inside(lambda: network.socket(family, kind))

    def connect(self, address: str, port: int, timeout: float = 5.0) -> network.socket:
        """A TCP connection from this host; raises ``OSError`` as connect(2) does."""
        client = self.socket(network.AF_INET6 if ":" in address else network.AF_INET)
        try:
            client.settimeout(timeout)
            client.connect((address, port))
        except BaseException:
            client.close()
            raise
        return client

    def listen(self, port: int, address: str = "") -> network.socket:
        """A listening TCP socket of this host (port 0: any); empty address = all of the lab's first family."""
        family = network.AF_INET6 if ":" in (address or self.address) else network.AF_INET
        server = self.socket(family)
        server.setsockopt(network.SOL_SOCKET, network.SO_REUSEADDR, 1)
        server.bind((address or ("::" if family == network.AF_INET6 else "0.0.0.0"), port))  # noqa: S104 (a lab host)
        server.listen(128)
        return server

    # --- files

    def path(self, path: str | os.PathLike[str]) -> Path:
        """Where this machine sees the host's file ``path``."""
        return Path(f"/proc/{self.namespaces.holder}/root") / os.fspath(path).lstrip("/")

    def use_resolver(self, *addresses: str) -> None:
        """Write this host's resolv.conf."""
        self.path("/etc/resolv.conf").unlink(missing_ok=True)  # may be a link into the machine's /run
        self.path("/etc/resolv.conf").write_text("".join(f"nameserver {address}\n" for address in addresses))

    # --- looking

    def capture(self, filter: str = "", interface: str = "eth0") -> Capture:
        """What passes this host's interface, as a context manager; complete when the block ends."""
        return Capture(self, filter, interface)

    def snapshot(self) -> Snapshot:
        """What this host looks like now, to be compared with another time."""
        return take(self)
