"""Long-lived processes that outlive who started them: start one, find it again, stop it.

A detached process leads a session of its own, so that neither the terminal's Ctrl-C nor the end of its starter takes
it along. It is found again by proof, not by pid alone: start time and executable (device and inode) must be those
recorded at its start. Signals go through a pidfd.

Its parent is init from the beginning (or whoever adopts orphans here), so nothing of ours has to wait for its end.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshagent.machine import process
from meshagent.machine.files import explained
from meshagent.model.errors import MeshagentError

#: A detached process inherits nothing else from its starter's environment.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Runs "$@" as nobody's child: the shell prints its pid and ends, and only then it goes on. Envoy asks the kernel to be
#: terminated with its parent (PR_SET_PDEATHSIG, and that is a thread), so it must have none when it asks.
_ORPHAN = 'unset PWD; exec 3<&0; { read -r _ <&3; exec setsid -- "$@" 3<&- >&2; } & echo $!'
#: The shell uses lower ones itself.
_FIRST_FREE = 16
#: How long a killed process may take to be gone, in seconds.
_KILL_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Handle:
    """Proof of one process: pid, start time (clock ticks after boot), device and inode of what it executes."""

    pid: int
    start: int
    exe_device: int
    exe_inode: int

    def as_dict(self) -> dict[str, int]:
        """For a state file; ``from_dict`` reads it back."""
        return {"pid": self.pid, "start": self.start, "exe_device": self.exe_device, "exe_inode": self.exe_inode}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Handle | None":
        """None when the record is not whole."""
        names = ("pid", "start", "exe_device", "exe_inode")
        values = [data.get(name) for name in names]
        if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            return None
        return cls(**dict(zip(names, values, strict=True)))  # type: ignore[arg-type]


def handle_of(pid: int) -> Handle | None:
    """The proof of a process as it runs now; None when it is gone."""
    start, executed = process.start_time(pid), process.exe_identity(pid)
    return Handle(pid, start, *executed) if start is not None and executed is not None else None


def alive(handle: Handle) -> bool:
    """True while exactly this process runs; a zombie, a successor of its pid or another program is not it."""
    return process.start_time(handle.pid) == handle.start and _executes(handle)


def adopt(handle: Handle) -> int | None:
    """A pidfd of the process, for the caller to watch and close; None unless it is alive and proven."""
    descriptor = process.open_pidfd(handle.pid, handle.start)
    if descriptor is not None and not _executes(handle):
        os.close(descriptor)
        return None
    return descriptor


def _executes(handle: Handle) -> bool:
    return process.exe_identity(handle.pid) == (handle.exe_device, handle.exe_inode)


def start_detached(
    argv: Sequence[str],
    *,
    log: Path,
    executable_fd: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    capabilities: Collection[str] = (),
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    timeout: float = 5.0,
) -> Handle:
    """Start a program that outlives this process, and return its proof once it really executes it.

    ``executable_fd``: an open descriptor of the binary, executed in place of ``argv[0]`` (its directory may be closed
    to ``uid``). ``capabilities`` (``net_admin``) are ambient after the change of user. Its output is appended to
    ``log``. Raises ``MeshagentError`` with the log's last line when it can't be started.
    """
    target = _target(argv, executable_fd)
    log_fd = _open_log(log)
    offset = os.fstat(log_fd).st_size
    copy = fcntl.fcntl(executable_fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE) if executable_fd is not None else None
    try:
        shell = subprocess.Popen(
            ["sh", "-c", _ORPHAN, "sh", *_command(argv, copy, uid, gid, capabilities)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            cwd=cwd,
            env={"PATH": _PATH, "LANG": "C.UTF-8", **(env or {})},
            pass_fds=[*pass_fds, *([copy] if copy is not None else [])],
            start_new_session=True,
        )
    except OSError as error:
        raise MeshagentError("service-not-started", f"could not start {argv[0]}: {error.strerror}") from error
    finally:
        for descriptor in (log_fd, copy):
            if descriptor is not None:
                os.close(descriptor)
    return _await_exec(_orphan(shell), target, argv[0], log, offset, timeout)


def _orphan(shell: subprocess.Popen[bytes]) -> int:
    """Let the shell end, then its child go on; the child's pid, 0 when there is none."""
    assert shell.stdin is not None and shell.stdout is not None
    with shell.stdin, shell.stdout:
        line = shell.stdout.readline()
        shell.wait()
    return int(line) if line.strip().isdigit() else 0


def _target(argv: Sequence[str], executable_fd: int | None) -> tuple[int, int]:
    """Device and inode of what will run. A script's would be its interpreter's: only binaries are started here."""
    try:
        found = Path(shutil.which(argv[0]) or argv[0]).stat() if executable_fd is None else os.fstat(executable_fd)
    except OSError as error:
        raise MeshagentError("service-missing", f"could not start {argv[0]}: {error.strerror}") from error
    return found.st_dev, found.st_ino


def _command(
    argv: Sequence[str], executable_fd: int | None, uid: int | None, gid: int | None, capabilities: Collection[str]
) -> list[str]:
    program = [*argv] if executable_fd is None else [f"/proc/self/fd/{executable_fd}", *argv[1:]]
    if uid is None:
        return program
    granted = ",".join(["-all", *(f"+{name}" for name in sorted(capabilities))])
    caps = [f"--inh-caps={granted}", f"--ambient-caps={granted}", f"--bounding-set={granted}"]
    group = uid if gid is None else gid
    return ["setpriv", f"--reuid={uid}", f"--regid={group}", "--clear-groups", *caps, "--no-new-privs", "--", *program]


def _open_log(log: Path) -> int:
    with explained(f"open the log {log}", log):
        return os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)


def _await_exec(pid: int, target: tuple[int, int], name: str, log: Path, offset: int, timeout: float) -> Handle:
    deadline = time.monotonic() + timeout
    while True:
        started = process.start_time(pid)
        if started is not None and process.exe_identity(pid) == target:
            return Handle(pid, started, *target)
        if started is None or time.monotonic() >= deadline:
            if started is not None:
                process.send_signal(pid, started, signal.SIGKILL)
            why = last_line(log, offset) or ("it ended at once" if started is None else "it did not start in time")
            raise MeshagentError("service-not-started", f"could not start {name}: {why}")
        time.sleep(0.002)


def last_line(log: Path, offset: int = 0) -> str:
    """The last non-empty line a service wrote to its log after byte ``offset``; at most 64 KiB are looked at."""
    try:
        with log.open("rb") as opened:
            end = opened.seek(0, os.SEEK_END)
            opened.seek(max(offset, end - 65536))
            lines = opened.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "")


def stop(handle: Handle, *, timeout: float = 10.0, number: int = signal.SIGTERM) -> bool:
    """Ask the process to end, kill it after ``timeout`` seconds; True when it was there.

    Raises ``MeshagentError`` when even SIGKILL doesn't end it within 5 s (a process stuck in the kernel).
    """
    descriptor = adopt(handle)
    if descriptor is None:
        return False
    try:
        for each, patience in ((number, timeout), (signal.SIGKILL, _KILL_PATIENCE)):
            _signal(descriptor, each)
            if process.wait_ended(descriptor, patience):
                return True
    finally:
        os.close(descriptor)
    raise MeshagentError(
        "service-stuck", f"process {handle.pid} could not be ended", hint="see its stack: ps -l, dmesg"
    )


async def stop_async(handle: Handle, *, timeout: float = 10.0, number: int = signal.SIGTERM) -> bool:
    """``stop`` for the event loop."""
    return await asyncio.to_thread(stop, handle, timeout=timeout, number=number)


async def ended(descriptor: int) -> None:
    """Wait on the event loop until the process behind a pidfd has ended; the caller closes the descriptor."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(descriptor, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(descriptor)


def _signal(descriptor: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, number)
