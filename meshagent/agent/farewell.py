"""The end of a host's daemon, and the word to the hub: by the daemon where it lives, else by ``leave`` itself.

A daemon that hangs can't say goodbye and would undo what leaving does once it wakes, so it is ended the hard way.
"""

import asyncio
import contextlib
import os
import select
import signal
import socket
import struct
import time
from pathlib import Path

from meshagent.agent.identity.keystore import Keystore
from meshagent.machine import facts as machine_facts
from meshagent.machine import files, process
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths
from meshagent.runtime.waiting import until
from meshagent.transport.local import call

STOP_PATIENCE = 10.0
#: A hub that is there answers within milliseconds; one that is away must not hold up who leaves.
TELL_PATIENCE = 3.0
_KILL_PATIENCE = 5.0


async def stop_agent(paths: Paths) -> tuple[bool, bool]:
    """(a daemon ran, the hub confirmed its goodbye). Afterwards none runs. Raises ``MeshagentError`` if one stays."""
    try:
        answer = await asyncio.to_thread(call, paths.control_socket, "leave", {}, timeout=STOP_PATIENCE)
    except (FileNotFoundError, ConnectionError, MeshagentError):
        answer = None
    if machine_facts.init_system() == "systemd" and str(paths.root) == "/":
        await process.run_async(["systemctl", "disable", "--now", "meshagent.service"], check=False)
    if answer is None:
        return await asyncio.to_thread(_kill, paths.control_socket), False
    await until(lambda: not paths.control_socket.exists(), STOP_PATIENCE, "the agent to end")
    return True, bool(answer["goodbye"])


async def tell_hub(keystore: Keystore) -> bool:
    """Give the enrolment back over a connection of our own; True when a hub confirmed. Never raises."""
    with contextlib.suppress(MeshagentError, TimeoutError):
        async with asyncio.timeout(TELL_PATIENCE):
            return await _tell(keystore)
    return False


async def _tell(keystore: Keystore) -> bool:
    from meshagent.agent.upstream.dial import Dialer  # grpc: only when there is something to say
    from meshagent.protocol.pb.meshagent_v1_pb2 import Announcement

    enrolment, identity = keystore.load_enrolment(), keystore.load_identity()
    if identity is None:
        return False
    goodbye = Announcement(generation=int(time.time() * 1000), goodbye=True, leave=True)
    dialer = Dialer(enrolment.server_name)
    for address in enrolment.hub_addresses:
        with contextlib.suppress(MeshagentError):
            async with dialer.announce(address, identity) as stream:
                await stream.send(goodbye)
                async for _ in stream:
                    return True
    return False


def _kill(control: Path) -> bool:
    """End whoever listens on our control socket without answering; True when there was somebody. Blocks."""
    pid = _listener(control)
    if not pid:
        files.remove_file(control)
        return False
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            if not select.select([descriptor], [], [], _KILL_PATIENCE)[0]:
                raise MeshagentError("agent-stays", f"the agent (pid {pid}) can't be ended", hint=f"see ps -p {pid}")
        finally:
            os.close(descriptor)
    files.remove_file(control)
    return True


def _listener(path: Path) -> int:
    """Pid of the process that listens there (SO_PEERCRED, unix(7)); 0 when nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return 0
        return int(struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
