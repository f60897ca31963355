"""A lab: a switch, a resolver and hosts, made when asked for and gone when the block ends, whatever happened.

What is on disk of a lab is its directory ``/run/ma-<6 hex>``, with a state file that names its owner; ``sweep`` ends
labs whose owner is gone (killed), except those that were kept on purpose. Directory and state file are made under a
lock, which ``sweep`` takes too: a directory without a state file was left by somebody who was killed in between.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import IO

from meshagent.lab import netns
from meshagent.lab.host import Host
from meshagent.lab.leftovers import remove_segments
from meshagent.lab.program import Program
from meshagent.lab.reaper import Reaper, adopt_orphans
from meshagent.lab.resolver_host import Resolver
from meshagent.lab.shell import write_entrance
from meshagent.lab.signals import uninterrupted
from meshagent.lab.waiting import wait_until
from meshagent.machine import process
from meshagent.model.errors import MeshagentError, UsageError
from meshagent.model.names import require_label

_BASE = Path("/run")
_PREFIX = "ma-"
_FORMAT = 1
_STATE = "lab.json"
_ROUNDS = 40
_LAB_NAME = re.compile(rf"{_PREFIX}[0-9a-f]{{6}}")
_EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


class Lab:
    """Hosts on one switch. ``families`` says which of IPv4 and IPv6 they have: ``(4,)``, ``(6,)`` or ``(4, 6)``.

    IPv4 addresses are 10.x.0.0/16, IPv6 fd6d:61xx:xxxx::/64, random per lab; the default gateway answers
    "unreachable" for everything outside. Needs root.

    ``adopt``: this process adopts and buries orphans of the hosts. Without it init does; that is for a lab that is to
    be kept, because Envoy asks the kernel for a SIGTERM at its parent's end, whoever that is by then.
    """

    def __init__(self, families: Sequence[int] = (4, 6), *, adopt: bool = True) -> None:
        if not families or not set(families) <= {4, 6}:
            raise UsageError("lab-families", f"families of a lab are 4 and 6, not {families!r}")
        token = secrets.token_hex(3)
        self.families = tuple(families)
        self.name = f"{_PREFIX}{token}"
        self.directory = _BASE / self.name
        self.hosts: dict[str, Host] = {}
        self.programs: list[Program] = []
        # 10.100 to 10.199: what a test writes down as an address elsewhere is outside
        self._net4 = IPv4Address(f"10.{100 + int(token, 16) % 100}.0.0")
        self._net6 = IPv6Address(f"fd6d:61{token[:2]}:{token[2:]}::")
        self._next = 10
        self._switch: netns.Namespaces | None = None
        self._resolver: Resolver | None = None
        self._kept = False
        self._adopt = adopt
        self._adopting = False
        self._reaper = Reaper(self._nets, lambda: {program.pid for program in self.programs} | self._holder_pids())

    # --- life

    def __enter__(self) -> "Lab":
        if os.geteuid() != 0:
            raise MeshagentError("not-root", "a lab of network namespaces needs root", hint="run it as root")
        sweep()
        try:
            with _registering():
                self.directory.mkdir(mode=0o755)
                self._write_state()
            if self._adopt:
                adopt_orphans(True)
                self._adopting = True
            self._switch = netns.create(self.directory, self.name, "switch", self._switch_commands())
            netns.inside(self._switch.holder, _answer_unreachable)
            self._reaper.start()
            self._resolver = Resolver(self._add("resolver", 2))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._explain(error)
        if not self._kept:
            self.close()

    def keep(self) -> Path:
        """Leave everything running when the block ends; a later ``sweep(kept=True)`` removes it.

        Returns a script, inside the lab's directory, that runs a command on a host: ``<script> HOST COMMAND…``.
        """
        self._kept = True
        self._write_state()
        return write_entrance(self.directory, self.hosts.values())

    def close(self) -> None:
        """End every process of the lab and remove what it made; harmless when called twice.

        Ctrl-C and polite signals wait until it is done.
        """
        with uninterrupted():
            self._close()

    def _close(self) -> None:
        netns.end_lab(self.name, self._nets())
        for program in self.programs:
            program.popen.wait(10)
        with suppress(RuntimeError):  # never started
            self._reaper.stop()
        for holder in self._holder_pids():
            with suppress(ChildProcessError):
                os.waitpid(holder, 0)
        self._switch = None
        self.hosts.clear()
        _remove(self.directory)
        if self._adopting:
            self._adopting = False
            adopt_orphans(False)

    def _explain(self, error: BaseException) -> None:
        for what, text in self.told():
            error.add_note(f"--- {what}\n{text}")

    def told(self, lines: int = 25) -> Iterator[tuple[str, str]]:
        """What the programs of every host said last: "host: log" and the end of it."""
        for host in self.hosts.values():
            for log in sorted([*host.private.glob("*.log"), *(host.root / "run/meshagent").glob("*.log")]):
                last = log.read_text(errors="replace").splitlines()[-lines:]
                if last and not log.name.startswith("capture-"):
                    yield f"{host.name}: {log.name}", "\n".join(last)

    # --- hosts

    def host(self, name: str) -> Host:
        """Add a host; its name is a DNS label and resolves as ``<name>.lab.test`` at the lab's resolver."""
        require_label(name, "host name")
        if name in self.hosts or name == "switch":
            raise UsageError("lab-host", f"the lab already has a host {name}")
        host = self._add(name, self._next)
        self._next += 1
        host.use_resolver(*self.resolver.host.addresses)
        for address in host.addresses:
            self.resolver.add(f"{name}.lab.test", "AAAA" if ":" in address else "A", address)
        return host

    def remove(self, host: Host) -> None:
        """The machine is gone: every process ends at once, its link leaves the switch, its name is forgotten.

        Nobody says goodbye for it; its neighbours get no answer from its addresses any more.
        """
        netns.end_all({host.namespaces.net})
        del self.hosts[host.name]
        self.resolver.remove(f"{host.name}.lab.test")
        with suppress(ChildProcessError):  # the reaper was quicker
            os.waitpid(host.namespaces.holder, 0)
        wait_until(lambda: not self._has_link(host), what=f"the link of {host.name} leaving the switch")

    def _has_link(self, host: Host) -> bool:
        """The kernel frees a network namespace a moment after its last process ended."""
        assert self._switch is not None
        argv = ["nsenter", f"--target={self._switch.holder}", "--net", "ip", "link", "show", host.link]
        return process.run(argv, check=False).returncode == 0

    @property
    def resolver(self) -> Resolver:
        """The name server that every host's resolv.conf names."""
        assert self._resolver is not None, "the lab is not open"
        return self._resolver

    def gateway(self, host: Host) -> str:
        """The default gateway (of the first family) of ``host``."""
        return self._address(4 if host.address4 else 6, 1)

    def spawn(
        self, argv: list[str], stdin: int | IO[bytes], output: IO[bytes], env: dict[str, str], pass_fds: Sequence[int]
    ) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own (Ctrl-C is the lab's business)."""
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            pass_fds=pass_fds,
            start_new_session=True,
        )

    def _add(self, name: str, number: int) -> Host:
        assert self._switch is not None, "the lab is not open"
        root, private = self.directory / name, self.directory / ".lab" / name
        root.mkdir(mode=0o755)
        private.mkdir(mode=0o755, parents=True)
        port = f"v{number}"
        made = netns.create(self.directory, self.name, name, self._host_commands(port, number))
        self._in_switch(f"link set {port} master br0 up")
        address4, address6 = (self._address(family, number) if family in self.families else "" for family in (4, 6))
        host = Host(self, name, root, private, address4, address6, made, port)
        self.hosts[name] = host
        host.path("/etc/hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n")
        host.path("/etc/hostname").write_text(f"{name}\n")
        _separate_users(host, number)
        host.path("/etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n")
        return host

    def _address(self, family: int, number: int) -> str:
        return str(self._net4 + number) if family == 4 else str(self._net6 + number)

    def _switch_commands(self) -> str:
        lines = ["link set lo up", "link add br0 type bridge mcast_snooping 0", "link set br0 up"]
        for family in self.families:
            lines.append(f"addr add {self._address(family, 1)}/{_prefix(family)} dev br0{_nodad(family)}")
            lines.append(f"route add unreachable {_EVERYWHERE[family]}")
        return "\n".join(lines)

    def _host_commands(self, port: str, number: int) -> str:
        assert self._switch is not None
        lines = ["link set lo up", f"link add eth0 type veth peer name {port} netns {self._switch.holder}"]
        lines.append("link set eth0 up")
        for family in self.families:
            lines.append(f"addr add {self._address(family, number)}/{_prefix(family)} dev eth0{_nodad(family)}")
            lines.append(f"route add {_EVERYWHERE[family]} via {self._address(family, 1)}")
        return "\n".join(lines)

    def _in_switch(self, commands: str) -> None:
        assert self._switch is not None
        process.run(["nsenter", f"--target={self._switch.holder}", "--net", "ip", "-batch", "-"], input=commands)

    def _holder_pids(self) -> set[int]:
        switch = {self._switch.holder} if self._switch else set()
        return switch | {host.namespaces.holder for host in self.hosts.values()}

    def _nets(self) -> set[int]:
        switch = {self._switch.net} if self._switch else set()
        return switch | {host.namespaces.net for host in self.hosts.values()}

    def _write_state(self) -> None:
        owner = {"pid": os.getpid(), "start": process.start_time(os.getpid())}
        state = {"format": _FORMAT, "owner": owner, "kept": self._kept}
        new = self.directory / f"{_STATE}.new"
        new.write_text(json.dumps(state))
        new.replace(self.directory / _STATE)


@contextmanager
def _registering() -> Iterator[None]:
    """Nobody else makes or judges a lab's directory meanwhile."""
    descriptor = os.open(_BASE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _separate_users(host: Host, number: int) -> None:
    """System users made on different hosts get different numbers: all hosts share one /proc, and userdel(8) refuses
    to remove a user whose number some process there has."""
    top = 900 - 5 * (number % 80)
    with host.path("/etc/login.defs").open("a") as file:
        file.write(f"\nSYS_UID_MAX {top}\nSYS_GID_MAX {top}\nSYS_UID_MIN 100\nSYS_GID_MIN 100\n")


def _answer_unreachable() -> None:
    """Only a router answers "unreachable" (ICMP); without it a connection to nowhere would wait for its timeout."""
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        path = Path("/proc/sys/net", name)
        if path.exists():
            path.write_text("1")


def _prefix(family: int) -> int:
    return 16 if family == 4 else 64


def _nodad(family: int) -> str:
    return " nodad" if family == 6 else ""


def sweep(kept: bool = False) -> list[str]:
    """End labs whose owner is gone, with ``kept`` also those left running on purpose; the names of those removed."""
    with _registering():
        abandoned = [each for each in sorted(_BASE.glob(f"{_PREFIX}??????")) if _abandoned(each, kept)]
    for directory in abandoned:
        with uninterrupted():
            netns.end_lab(directory.name, ())
            _remove(directory)
    return [directory.name for directory in abandoned]


def _remove(directory: Path) -> None:
    """The state file goes last: whoever is killed in the middle leaves what the next run recognises.

    A program that outlived its starter for a moment may still write; then it takes another round.
    """
    with suppress(FileNotFoundError):  # closed twice, or by the run that made it
        remove_segments(directory)
    with suppress(FileNotFoundError):  # two that start at the same time sweep the same one: whoever is later is done
        for _ in range(_ROUNDS):
            _empty(directory)
            if {path.name for path in directory.iterdir()} <= {_STATE}:
                shutil.rmtree(directory, ignore_errors=True)
            else:
                time.sleep(0.05)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _STATE:
            path.unlink(missing_ok=True)


def _abandoned(directory: Path, kept: bool) -> bool:
    if not _LAB_NAME.fullmatch(directory.name):
        return False
    try:
        state = json.loads((directory / _STATE).read_text())
        alive = process.start_time(int(state["owner"]["pid"])) == state["owner"]["start"]
        return not alive and (kept or not state["kept"])
    except FileNotFoundError:
        with suppress(FileNotFoundError):  # its owner is putting it away
            return {path.name for path in directory.iterdir()} <= {f"{_STATE}.new"}
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return False  # not a lab of ours
