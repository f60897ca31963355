"""Starting one Envoy: its directory, its bootstrap, its command line.

The binary is opened by root and executed by descriptor, so its directory may be closed to the proxy's user. The proxy's
directory belongs to the proxy (it makes its sockets there); what it must not change lies beside it.
"""

import contextlib
import json
import os
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshagent.agent.envoy import binary, farewell
from meshagent.agent.envoy.binary import Binary
from meshagent.agent.envoy.bootstrap import ProxyNode, Sockets, render
from meshagent.agent.envoy.heap import heap_limit
from meshagent.agent.envoy.record import Older
from meshagent.config.settings import ProxyConfig
from meshagent.machine import files, memory, services
from meshagent.machine.segments import segment
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths

#: For marks and transparent sockets (the client's address is kept).
CAPABILITIES = ("net_admin",)

#: Connections cost two descriptors each. The kernel's own ceiling for one process is fs.nr_open (1,048,576).
DESCRIPTORS = 1 << 20

#: So long after its own start an epoch tells the one before to end. Until then that message is led astray
#: (``handover.cut``), so this is the time in which an agent that was killed in the middle may come back and do that.
PARENT_SECONDS = 10

MAX_LOG = 4 << 20


@dataclass(frozen=True, slots=True)
class ProxyUser:
    """Numeric ids of the user that Envoy runs as."""

    uid: int
    gid: int


class Launcher:
    """Starts epochs of one root's proxy, each by the ``settings`` of that moment."""

    #: Further words of the command line, for tests.
    options: Sequence[str] = ()

    def __init__(
        self, paths: Paths, user: ProxyUser, node: ProxyNode, *, settings: Callable[[], ProxyConfig] = ProxyConfig
    ) -> None:
        self._paths = paths
        self._user = user
        self._node = node
        self.settings = settings

    @property
    def log(self) -> Path:
        """Envoy's own log: it may quote configuration, so only root reads it and none of it is passed on."""
        return self._paths.run / "proxy.log"

    def admin_socket(self, epoch: int) -> Path:
        return self._paths.proxy_dir / f"admin-{epoch}.sock"

    @property
    def uid(self) -> int:
        """The proxy's user."""
        return self._user.uid

    def path(self) -> Path:
        """The binary as it is found now. Raises ``MeshagentError``."""
        configured = self.settings().binary
        return binary.find(Path(configured) if configured else None)

    def binary(self) -> Binary:
        """The binary that a start would take. Raises ``MeshagentError`` unless it is an Envoy that may run."""
        remembered = self._paths.state / "envoy.json"
        return binary.examine(self.path(), allowed=self.settings().allow_version, remembered=remembered)

    def clean(self, base_id: int, parent: Older | None) -> None:
        """Remove what killed proxies left: sockets, configurations, shared memory; what a ``parent`` uses stays."""
        kept = f"_{parent.base_id * 10 + parent.epoch}" if parent is not None else "-"
        for socket in self._paths.proxy_dir.glob("hot_*"):
            if not socket.name.endswith(kept):
                files.remove_file(socket, durable=False)
        for leftover in (*self._paths.proxy_dir.glob("admin-*.sock"), *self._paths.run.glob("proxy-*.json")):
            files.remove_file(leftover, durable=False)
        farewell.clean(self._paths, keep=parent.base_id if parent is not None else 0)
        files.remove_file(segment(base_id), durable=False)

    def start(self, program: Binary, epoch: int, base_id: int) -> services.Handle:
        """Blocks until the binary executes (milliseconds). Raises ``MeshagentError``."""
        files.make_dir(self._paths.run, mode=0o755)
        files.make_dir(self._paths.proxy_dir, mode=0o700, uid=self._user.uid, gid=self._user.gid)
        bootstrap = self._write_bootstrap(epoch, base_id)
        self.bound_log()
        with contextlib.suppress(OSError):
            self.admin_socket(epoch).unlink()  # left by a process that was killed
        _raise_limit()
        descriptor = _open(program.path)
        try:
            return services.start_detached(
                self._argv(bootstrap, epoch, base_id),
                log=self.log,
                executable_fd=descriptor,
                uid=self._user.uid,
                gid=self._user.gid,
                capabilities=CAPABILITIES,
            )
        finally:
            os.close(descriptor)

    def bound_log(self) -> None:
        """Keep the last part of a log that has grown; the proxy appends, so cutting is safe while it writes."""
        with contextlib.suppress(OSError), self.log.open("r+b") as log:
            if log.seek(0, os.SEEK_END) > MAX_LOG:
                log.seek(-MAX_LOG // 4, os.SEEK_END)
                tail = log.read()
                log.seek(0)
                log.truncate()
                log.write(tail)

    def _write_bootstrap(self, epoch: int, base_id: int) -> Path:
        stays = farewell.write(self._paths, base_id, epoch, go=False)
        sockets = Sockets(self._paths.xds_socket, self._paths.sds_socket, self.admin_socket(epoch), stays)
        path = self._paths.run / f"proxy-{epoch}.json"
        heap = heap_limit(self.settings().memory, memory.cgroup_limit(), memory.host_total())
        text = json.dumps(render(self._node, sockets, heap), indent=1)
        files.write_atomic(path, text, mode=0o640, gid=self._user.gid, durable=False)
        return path

    def _argv(self, bootstrap: Path, epoch: int, base_id: int) -> list[str]:
        return [
            "envoy",
            "--config-path",
            str(bootstrap),
            "--base-id",
            str(base_id),
            "--restart-epoch",
            str(epoch),
            "--socket-path",  # a name in the file system: abstract names are open to every local user
            str(self._paths.proxy_dir / "hot"),
            "--socket-mode",
            "600",
            "--concurrency",
            str(self.settings().concurrency),
            "--parent-shutdown-time-s",
            str(PARENT_SECONDS),
            "--drain-strategy",  # HTTP connections are asked to go with their next answer, not over ten minutes
            "immediate",
            "--log-level",
            "warning",
            *self.options,
        ]


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise MeshagentError("envoy-missing", f"{path}: {error.strerror}", hint="see `meshagent status`") from error


def _raise_limit() -> None:
    """Our own limit, which the proxy inherits: of another user's process it may only be set with CAP_SYS_RESOURCE.

    As many descriptors as the kernel gives; in a container the hard limit may be all there is.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (max(DESCRIPTORS, hard), hard):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            return
