"""Programs and processes of this machine: the only way to run a program, and proof that a pid is still who it was.

A pid alone proves nothing: the kernel reuses it. A process is named by its pid *and* its start time (proc(5), stat
field 22, clock ticks since boot), and is signalled through a pidfd opened before the start time was compared, so the
signal can't reach a successor.
"""

import asyncio
import contextlib
import os
import selectors
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from meshagent.machine.pump import pump
from meshagent.model.errors import MeshagentError

Argv = Sequence[str | os.PathLike[str]]

#: The largest output anyone here parses is a ruleset with thousands of addresses, well below this.
OUTPUT_LIMIT = 8 << 20


class ProgramError(MeshagentError):
    """A program could not be run, failed, or took too long; ``message`` shows the exact command.

    ``returncode`` is None where there is none (missing program, timeout); ``stdout``/``stderr`` hold what came.
    """

    def __init__(
        self,
        code: str,
        argv: Argv,
        what: str,
        *,
        returncode: int | None = None,
        stdout: str = "",
        stderr: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(code, f"`{show(argv)}` {what}", hint=hint)
        self.argv = tuple(os.fspath(part) for part in argv)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


def show(argv: Argv) -> str:
    """The command as one could type it."""
    return shlex.join(os.fspath(part) for part in argv)


def run(
    argv: Argv,
    *,
    input: str | bytes | None = None,
    timeout: float = 10.0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    pass_fds: Sequence[int] = (),
    limit: int = OUTPUT_LIMIT,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, without a shell; stdin is ``input`` or empty, never the terminal.

    ``timeout`` in seconds, ``limit`` in bytes for each of stdout and stderr, which come back as text (undecodable
    bytes replaced). Raises ``ProgramError``: missing program, timeout, too much output, and with ``check`` also an
    exit status other than 0.
    """
    return _complete(_start(argv, input is not None, env, cwd, pass_fds), argv, input, timeout, check, limit)


async def run_async(
    argv: Argv,
    *,
    input: str | bytes | None = None,
    timeout: float = 10.0,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    pass_fds: Sequence[int] = (),
    limit: int = OUTPUT_LIMIT,
) -> subprocess.CompletedProcess[str]:
    """``run`` for the event loop, with the same arguments and errors; a cancelled call kills the program.

    In a thread rather than asyncio's own subprocesses, whose wait() hangs now and then after a kill (Python 3.11.2).
    """
    process = _start(argv, input is not None, env, cwd, pass_fds)
    work = asyncio.ensure_future(asyncio.to_thread(_complete, process, argv, input, timeout, check, limit))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        process.kill()  # the thread then sees its end
        work.add_done_callback(lambda done: done.exception())
        raise


def _start(
    argv: Argv,
    stdin: bool,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    pass_fds: Sequence[int],
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [os.fspath(part) for part in argv],
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            cwd=cwd,
            pass_fds=pass_fds,
        )
    except OSError as error:
        raise _not_started(argv, error) from error


def _complete(
    process: subprocess.Popen[bytes], argv: Argv, input: str | bytes | None, timeout: float, check: bool, limit: int
) -> subprocess.CompletedProcess[str]:
    with process:
        try:
            stdout, stderr = pump(process, _encode(input), timeout, limit)
        except BaseException as error:
            process.kill()
            if isinstance(error, TimeoutError):
                raise _too_slow(argv, timeout) from None
            if isinstance(error, OverflowError):
                raise _too_much(argv, limit) from None
            raise
    return _finish(argv, process.returncode, stdout, stderr, check)


def _finish(argv: Argv, returncode: int, stdout: bytes, stderr: bytes, check: bool) -> subprocess.CompletedProcess[str]:
    done = subprocess.CompletedProcess(
        [os.fspath(part) for part in argv], returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace")
    )
    if check and returncode != 0:
        raise ProgramError(
            "program-failed",
            argv,
            f"{_status(returncode)}{_last_words(done.stderr or done.stdout)}",
            returncode=returncode,
            stdout=done.stdout,
            stderr=done.stderr,
        )
    return done


def _encode(input: str | bytes | None) -> bytes:
    return input.encode() if isinstance(input, str) else input or b""


def _status(returncode: int) -> str:
    if returncode >= 0:
        return f"failed with exit status {returncode}"
    try:
        return f"was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was ended by signal {-returncode}"


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {lines[-1][:500]}" if lines else ""


def _not_started(argv: Argv, error: OSError) -> ProgramError:
    name = os.fspath(argv[0])
    if isinstance(error, FileNotFoundError):
        return ProgramError("program-missing", argv, f"could not run: {name} is not installed", hint=f"install {name}")
    return ProgramError("program-not-started", argv, f"could not run: {error.strerror}")


def _too_slow(argv: Argv, timeout: float) -> ProgramError:
    return ProgramError("program-timeout", argv, f"did not end within {timeout:g} s")


def _too_much(argv: Argv, limit: int) -> ProgramError:
    return ProgramError("program-output", argv, f"printed more than {limit} bytes")


# --- processes -------------------------------------------------------------------------------------------------------


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which ``pid`` started; None when there is no such process, or only its zombie."""
    state, fields = _stat(pid)
    return None if state in ("", "Z", "X") else int(fields[19])


def parent(pid: int) -> int:
    """The parent's pid; 0 when there is none, or no such process."""
    state, fields = _stat(pid)
    return int(fields[1]) if state else 0


def everyone() -> dict[int, tuple[str, int]]:
    """Every process visible here: pid -> name (at most 15 characters) and parent's pid. One small file for each."""
    found: dict[int, tuple[str, int]] = {}
    for pid in pids():
        with contextlib.suppress(OSError):  # it ended
            text = _small(f"/proc/{pid}/stat")
            end = text.rindex(")")
            found[pid] = text[text.index("(") + 1 : end], int(text[end + 4 :].partition(" ")[0])
    return found


def _stat(pid: int) -> tuple[str, list[str]]:
    """State and the fields from the state on (proc(5) fields 3…); the command name may hold spaces and ')'."""
    try:
        text = _small(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return "", []
    fields = text.rpartition(")")[2].split()
    return fields[0], fields


def exe_identity(pid: int) -> tuple[int, int] | None:
    """Device and inode of the executable ``pid`` runs; None when it is gone, a zombie, or a kernel thread."""
    try:
        found = Path(f"/proc/{pid}/exe").stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def comm(pid: int) -> str:
    """The process's name (at most 15 characters); empty when it is gone."""
    try:
        return _small(f"/proc/{pid}/comm").rstrip("\n")
    except OSError:
        return ""


def command_line(pid: int) -> list[str]:
    """The first words of the command that ``pid`` was started with (a page of them); empty when it is gone."""
    try:
        return os.fsdecode(_page(f"/proc/{pid}/cmdline")).split("\0")
    except OSError:
        return []


def _small(path: str) -> str:
    return _page(path).decode(errors="replace")


def _page(path: str) -> bytes:
    """What is in a file of at most a page: with three system calls, because some are read for every process of a
    machine every few seconds (a file object takes nine)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def namespace(pid: int | str = "self", kind: str = "net") -> int | None:
    """Inode of a namespace (``net``, ``mnt``, …) of a process; None when it is gone, a zombie, or not ours to see."""
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino  # noqa: PTH116 - asked for every process
    except OSError:
        return None


def pids() -> Iterator[int]:
    """All process ids visible here, as of now."""
    with os.scandir("/proc") as entries:  # a Path for each takes three times as long
        return iter([int(entry.name) for entry in entries if entry.name.isascii() and entry.name.isdigit()])


@contextlib.contextmanager
def pidfd(pid: int, started: int) -> Iterator[int | None]:
    """A pidfd of the process ``pid`` that started at ``started``; None when that process is gone."""
    descriptor = open_pidfd(pid, started)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def open_pidfd(pid: int, started: int) -> int | None:
    """As ``pidfd``, but the caller closes it. The descriptor becomes readable when the process ends."""
    try:
        descriptor = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return None
    if start_time(pid) != started:
        os.close(descriptor)
        return None
    return descriptor


def send_signal(pid: int, started: int, number: int) -> bool:
    """Signal exactly the process that started at ``started``; False when it is gone."""
    with pidfd(pid, started) as descriptor:
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        return True


def wait_ended(descriptor: int, timeout: float) -> bool:
    """Wait until the process behind a pidfd has ended (a zombie counts); False after ``timeout`` seconds."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return bool(selector.select(max(0.0, timeout)))
