"""What a start begins with: who this host is, its settings, that no other agent serves it, and its Envoy.

Loaded before anything else of the agent, so it imports little: no gRPC, no protobuf, no cryptography. An Envoy that
lives is adopted here, too; one that is started asks for its configuration until there is somebody to answer.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import structlog

from meshagent.agent import footprint as footprints
from meshagent.agent.envoy.bootstrap import ProxyNode
from meshagent.agent.envoy.launch import Launcher, ProxyUser
from meshagent.agent.envoy.process import Proxy
from meshagent.agent.footprint import Footprint
from meshagent.agent.health.tracker import Tracker
from meshagent.agent.identity.keystore import Enrolment, Keystore
from meshagent.config.follow import FollowedConfig
from meshagent.machine import files
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths
from meshagent.observe import log as logging
from meshagent.runtime.clock import SystemClock
from meshagent.runtime.tasks import Supervisor
from meshagent.transport import unix

log = structlog.get_logger()

#: To find or start Envoy takes 30 ms; where that hangs (a disk), the rest of the agent is needed all the more.
_PATIENCE = 1.0


class First:
    """What all the rest is made with. Reading what is on disk raises ``MeshagentError``."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.clock = SystemClock()
        self.tracker = Tracker(self.clock)
        self.keystore = Keystore(paths.state)
        self.enrolment: Enrolment = self.keystore.load_enrolment()
        self.footprint: Footprint = _require_footprint(paths)
        self.config = FollowedConfig(paths.config, self.tracker)
        launcher = Launcher(
            paths,
            ProxyUser(self.footprint.uid, self.footprint.gid),
            ProxyNode(id=self.enrolment.host_name, cluster=self.enrolment.service_account),
            settings=lambda: self.config.config.value.proxy,
        )
        self.proxy = Proxy(paths, launcher, self.tracker, self.clock)

    async def start(self, down: contextlib.AsyncExitStack) -> None:
        """Returns when Envoy is adopted or started, or that failed; ``down`` ends its supervision, last of all."""
        if not self.keystore.has_identity:  # without it Envoy could not do a thing
            raise identity_damaged()
        config = await self.config.start()
        logging.set_up(config.log.level.value, config.log.format.value)
        files.make_dir(self.paths.run, mode=0o755)
        down.enter_context(alone(self.paths))
        tasks = await down.enter_async_context(Supervisor(report_failure))
        tasks.start("proxy", self.proxy.run)
        with contextlib.suppress(TimeoutError):  # what is loaded next would take the interpreter from it: 0.1 s
            await asyncio.wait_for(self.proxy.attempted.wait(), _PATIENCE)


@contextlib.contextmanager
def alone(paths: Paths) -> Iterator[None]:
    """No second agent works for this root meanwhile. Raises ``MeshagentError`` ``already-running``.

    By a lock on the directory of its sockets, which ends with the process; an agent of a version that takes no lock
    is known by the socket it serves.
    """
    descriptor = _open(paths.run)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise unix.already_running(paths.control_socket) from None
        unix.refuse_if_live(paths.control_socket)
        yield
    finally:
        os.close(descriptor)


def _open(directory: Path) -> int:
    with files.explained(f"open {directory}", directory):
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def report_failure(name: str, error: Exception, retry_in: float) -> None:
    """For the log (``runtime.tasks.OnFailure``)."""
    log.error("a part of the agent failed and starts again", part=name, retry_in=round(retry_in, 2), exc_info=error)


def identity_damaged() -> MeshagentError:
    """What is raised where an enrolled host has no certificate."""
    return MeshagentError(
        "identity-damaged",
        "this host is enrolled but its certificate is gone",
        hint="meshagent leave, then enrol again",
    )


def _require_footprint(paths: Paths) -> Footprint:
    found = footprints.load(paths)
    if found is None or found.uid <= 0:
        raise MeshagentError(
            "footprint-damaged",
            "the record of what enrolling made here is gone",
            hint="meshagent leave, then enrol again",
        )
    return found
