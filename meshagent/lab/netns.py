"""Namespaces held by a process each: making one, opening sockets in it, ending everything inside.

The holder is a shell that set the namespaces up and then became ``sleep``. Its environment carries the lab's and the
host's name, so that a later run finds it even when the lab died before it could write anything down. Nothing is bound
into /run/netns: when the last process of a host has ended, the kernel frees namespaces, mounts and links by itself.
"""

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from meshagent.lab.waiting import NotInTimeError
from meshagent.machine import process
from meshagent.model.errors import MeshagentError

T = TypeVar("T")

#: Environment variable of a holder: '<lab>/<host>'.
MARKER = "MESHAGENT_LAB_HOLDER"
#: Upper side of the overlay on /etc: what a host changed there, as a path in that host.
ETC_UPPER = "/run/.lab/etc"
_CLONE_NEWNET = 0x40000000  # linux/sched.h

# $1 the lab's directory, $2 the host's name, $3 network commands for ip -batch.
# A tmpfs as /run hides the machine's systemd, resolved and lock files; the lab's directory shows through (it is held
# open while the tmpfs goes over it). IPv6 without duplicate address detection, which would hold an address back for a
# second, and without router advertisements.
_SET_UP = """
set -eu
mount --make-rprivate /
exec 9<"$1"
mount -t tmpfs -o mode=0755,size=512m tmpfs /run
mkdir -p "$1" /run/lock /run/.lab/etc /run/.lab/work
mount --no-canonicalize --bind /proc/self/fd/9 "$1"
exec 9<&-
mount -t overlay -o lowerdir=/etc,upperdir=/run/.lab/etc,workdir=/run/.lab/work overlay /etc
hostname "$2"
if [ -d /proc/sys/net/ipv6/conf ]; then
  for scope in all default; do
    echo 0 >/proc/sys/net/ipv6/conf/$scope/accept_dad
    echo 0 >/proc/sys/net/ipv6/conf/$scope/accept_ra
  done
fi
printf '%s\\n' "$3" | ip -batch -
echo ready
exec sleep infinity >/dev/null 2>&1
"""


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The namespaces of one host: its holder, and the inode of the network namespace that all its processes share."""

    holder: int
    holder_start: int
    net: int


def create(directory: Path, lab: str, host: str, commands: str) -> Namespaces:
    """Make the namespaces of ``host``; ``commands`` (``ip -batch``) run inside. Raises ``MeshagentError``."""
    argv = ["unshare", "--net", "--mount", "--uts", "sh", "-c", _SET_UP, "sh", str(directory), host, commands]
    holder = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C at the terminal is for the lab, which then ends its hosts in order
        env={"PATH": os.environ.get("PATH", os.defpath), MARKER: f"{lab}/{host}"},
    )
    assert holder.stdout is not None and holder.stderr is not None
    with holder.stdout, holder.stderr:
        if holder.stdout.readline() != b"ready\n":
            why = holder.stderr.read(4096).decode(errors="replace").strip()
            holder.wait()
            raise MeshagentError(
                "lab-host",
                f"could not make the namespaces of lab host {host}: {why or 'the holder ended'}",
                hint="a lab needs root, network and mount namespaces, and overlayfs",
            )
    started, net = process.start_time(holder.pid), process.namespace(holder.pid)
    assert started is not None and net is not None
    return Namespaces(holder.pid, started, net)


def holders(lab: str) -> Iterator[int]:
    """Pids of the holders of the lab of that name, whoever started them."""
    wanted = f"{MARKER}={lab}/".encode()
    for pid in process.pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if any(entry.startswith(wanted) for entry in environment.split(b"\0")):
            yield pid


def members(nets: Collection[int]) -> list[int]:
    """Pids of all processes in these network namespaces."""
    return [pid for pid in process.pids() if process.namespace(pid) in nets]


def end_all(nets: Collection[int], timeout: float = 10.0, spare: Collection[int] = ()) -> None:
    """Kill every process in these network namespaces but ``spare``, by pid, until none is left.

    Raises ``NotInTimeError`` naming those that remain. This process itself and namespaces it lives in are never hit.
    """
    targets = set(nets) - {process.namespace(), process.namespace(1)}
    deadline = time.monotonic() + timeout
    while left := [pid for pid in members(targets) if pid not in spare]:
        for pid in left:
            started = process.start_time(pid)
            if started is not None and process.namespace(pid) in targets:
                process.send_signal(pid, started, signal.SIGKILL)
        if time.monotonic() > deadline:
            names = ", ".join(f"{pid} ({process.comm(pid)})" for pid in left)
            raise NotInTimeError("lab-remains", f"processes of the lab could not be ended: {names}")
        time.sleep(0.005)


def end_lab(lab: str, nets: Collection[int]) -> None:
    """End everything of a lab: what is in these network namespaces, and holders nobody wrote down (yet).

    Holders go last: by them a later run finds what is left when this one is killed half-way. Those that have not left
    our own namespace yet go first, or they would make one more.
    """
    own = {process.namespace(), process.namespace(1)}
    found, keepers = set(nets), set[int]()
    for pid in holders(lab):
        started, net = process.start_time(pid), process.namespace(pid)
        if started is not None and net is not None and net not in own:
            found.add(net)
            keepers.add(pid)
        elif started is not None:
            process.send_signal(pid, started, signal.SIGKILL)
    end_all(found, spare=keepers)
    end_all(found)


def inside(pid: int, function: Callable[[], T]) -> T:
    """Call ``function`` in a thread that has entered the network namespace of ``pid``, and return its result.

    Sockets it opens belong to that namespace for good; files are those of this machine.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def enter_and_call() -> None:
        try:
            _enter(pid)
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=enter_and_call, name=f"netns of {pid}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _enter(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"setns: {os.strerror(number)}")
    finally:
        os.close(descriptor)
