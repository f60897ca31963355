"""Starting one Envoy: its directory, its bootstrap, its command line.

The binary is opened by root and executed by descriptor, so its directory may be closed to the proxy's user. The proxy's
directory belongs to the proxy (it makes its sockets there); what it must not change lies beside it.
"""

import contextlib
import json
import os
import resource
from dataclasses import dataclass
from pathlib import Path

from meshagent.agent.envoy.binary import Binary
from meshagent.agent.envoy.bootstrap import ProxyNode, Sockets, render
from meshagent.machine import files, services
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths

#: For marks and transparent sockets (the client's address is kept).
CAPABILITIES = ("net_admin",)

#: Connections cost two descriptors each. The kernel's own ceiling for one process is fs.nr_open (1,048,576).
DESCRIPTORS = 1 << 20

#: A parent epoch lives for its long connections.
PARENT_SECONDS = 86_400

MAX_LOG = 4 << 20


@dataclass(frozen=True, slots=True)
class ProxyUser:
    """Numeric ids of the user that Envoy runs as."""

    uid: int
    gid: int


class Launcher:
    """Starts epochs of one root's proxy."""

    def __init__(self, paths: Paths, user: ProxyUser, node: ProxyNode, *, concurrency: int = 2) -> None:
        self._paths = paths
        self._user = user
        self._node = node
        self._concurrency = concurrency

    @property
    def log(self) -> Path:
        """Envoy's own log: it may quote configuration, so only root reads it and none of it is passed on."""
        return self._paths.run / "proxy.log"

    def admin_socket(self, epoch: int) -> Path:
        return self._paths.proxy_dir / f"admin-{epoch}.sock"

    def start(self, binary: Binary, epoch: int, base_id: int) -> services.Handle:
        """Blocks until the binary executes (milliseconds). Raises ``MeshagentError``."""
        files.make_dir(self._paths.run, mode=0o755)
        files.make_dir(self._paths.proxy_dir, mode=0o700, uid=self._user.uid, gid=self._user.gid)
        bootstrap = self._write_bootstrap(epoch)
        self.bound_log()
        with contextlib.suppress(OSError):
            self.admin_socket(epoch).unlink()  # left by a process that was killed
        _raise_limit()
        descriptor = _open(binary.path)
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

    def _write_bootstrap(self, epoch: int) -> Path:
        sockets = Sockets(self._paths.xds_socket, self._paths.sds_socket, self.admin_socket(epoch))
        path = self._paths.run / f"proxy-{epoch}.json"
        text = json.dumps(render(self._node, sockets), indent=1)
        files.write_atomic(path, text, mode=0o640, gid=self._user.gid)
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
            str(self._concurrency),
            "--parent-shutdown-time-s",
            str(PARENT_SECONDS),
            "--log-level",
            "warning",
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
