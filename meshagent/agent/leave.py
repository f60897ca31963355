"""Out of the mesh: say goodbye, stop capturing, let connections finish, give back the host.

The order matters: discovery first, so that no peer sends new work; then the kernel, so that nothing new enters the
proxy; then the drain; then everything we made goes, the anchor table last of the kernel's part and the enrolment last
of the files. Each step looks at what is there, so an interrupted leave is finished by running it again.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshagent.agent import footprint as footprints
from meshagent.agent.capture.usable import usable_backends
from meshagent.agent.drain import Drained, end_proxy
from meshagent.agent.envoy.ending import fail_readiness
from meshagent.agent.farewell import stop_agent, tell_hub
from meshagent.agent.footprint import PROXY_USER, Footprint
from meshagent.agent.guarding import INSTALL_NFT, ensure_guard, find_guard
from meshagent.agent.identity.keystore import Keystore
from meshagent.agent.stopping import stop_capturing
from meshagent.guard.client import GuardClient
from meshagent.guard.nftquery import inet_table_exists
from meshagent.machine import files, netlink, process, users
from meshagent.machine.users import require_root
from meshagent.model.errors import MeshagentError
from meshagent.model.marks import ANCHOR_TABLE, TABLE
from meshagent.model.paths import Paths

#: ``--wait`` waits this long at most: a month, so that a forgotten one ends at all.
WAIT_SECONDS = 30 * 86400


@dataclass
class Report:
    """What leaving did, for the person."""

    removed: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    drain: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)


async def leave_mesh(
    paths: Paths, *, drain: int | None, purge: bool, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Leave; ``drain`` in seconds, None waits for the last connection. A host that never enrolled is left alone.

    Everything but the drain has bounds of its own: an agent, a guard, a proxy or a hub that hangs costs
    ``STOP_PATIENCE``, ``START_PATIENCE``, some seconds, ``TELL_PATIENCE``; together about a minute.
    """
    require_root("leaving")
    began = time.monotonic()
    keystore = Keystore(paths.state)
    footprint = footprints.load(paths)
    if not keystore.enrolled and footprint is None:
        footprints.forget_torn_start(paths)
        return {"was_enrolled": False, "seconds": _since(began), **vars(Report())}
    report = Report()
    if footprint is not None:
        await asyncio.to_thread(_require_way_to_the_kernel, paths)
    progress("no longer ready; saying goodbye to the mesh")
    await fail_readiness(paths)
    await _say_goodbye(paths, keystore, report)
    guard = await asyncio.to_thread(ensure_guard, paths) if footprint else None
    if guard is not None and footprint is not None and footprint.uid > 0:
        progress("capturing nothing new")
        await asyncio.to_thread(stop_capturing, guard, footprint.uid)
    progress("letting connections through the proxy finish")
    drained = await end_proxy(paths, WAIT_SECONDS if drain is None else drain, progress)
    report.closed = drained.closed
    if drained.ran:
        report.removed.append("proxy")
        report.drain = _told(drained, drain)
    if guard is not None:
        await asyncio.to_thread(_give_back_network, guard, paths, report)
    await asyncio.to_thread(_give_back_files, paths, keystore, footprint, purge, report)
    return {"was_enrolled": True, "seconds": _since(began), **vars(report)}


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


def _told(drained: Drained, limit: int | None) -> dict[str, Any]:
    """``limit`` as it was asked for: None waits without one."""
    return {"limit": limit, "seconds": round(drained.seconds, 1), "connections": drained.connections}


def _require_way_to_the_kernel(paths: Paths) -> None:
    """Before anything is given up: without libnftables its tables would stay, and what we captured would too."""
    nft, iptables = usable_backends()
    stays = any(inet_table_exists(name) for name in (TABLE, ANCHOR_TABLE))
    if nft or find_guard(paths) is not None or (iptables and not stays):
        return
    raise MeshagentError(
        "no-nftables",
        "cannot take our rules out of the kernel: libnftables.so.1 is not installed; nothing was changed",
        hint=f"{INSTALL_NFT}, then leave again",
    )


async def _say_goodbye(paths: Paths, keystore: Keystore, report: Report) -> None:
    """By the daemon, else by us; a hub that is away learns it from an operator."""
    ran, told = await stop_agent(paths)
    if ran:
        report.removed.append("agent")
    if not told and not await tell_hub(keystore):
        _warn_undelivered(keystore, report)


def _warn_undelivered(keystore: Keystore, report: Report) -> None:
    with contextlib.suppress(MeshagentError):
        name = keystore.load_enrolment().host_name
        report.warnings.append(f"the hub could not be told; on the hub run: meshagent hub host revoke {name}")


def _give_back_network(guard: GuardClient, paths: Paths, report: Report) -> None:
    guard.remove(anchor=True)
    if netlink.remove_ours():
        report.removed.append("routes and rules")
    guard.quit()
    guard.close()
    report.removed.append("kernel rules")


def _give_back_files(
    paths: Paths, keystore: Keystore, footprint: Footprint | None, purge: bool, report: Report
) -> None:
    """Run-time files, users, then keys and state; the record of what to give back goes last of all."""
    files.remove_tree(paths.run)
    if purge:
        files.remove_tree(paths.etc)
    if footprint is not None and footprint.user_created:
        _remove_user(footprint, report)
    for directory in reversed(footprint.directories if footprint else ()):
        with contextlib.suppress(OSError):  # not empty: it holds our state, or somebody put something there
            Path(directory).rmdir()
    keystore.wipe()
    footprints.disappear(paths, footprint)
    report.removed.append("keys and state")
    if paths.etc.exists():
        report.warnings.append(f"{paths.etc} is yours and stays; leave --purge removes it")


def _remove_user(footprint: Footprint, report: Report) -> None:
    """Only the user that enrolling made, and only while no other root's proxy runs as it.

    Without a number on record enrolling was interrupted right after it made the user.
    """
    found = users.find_user(PROXY_USER)
    if found is None or footprint.uid not in (found.uid, -1):
        return
    if any(_runs_as(pid, found.uid) for pid in process.pids()):
        report.warnings.append(f"user {PROXY_USER} stays: processes of another root run as it")
        return
    users.remove_user(PROXY_USER)
    report.removed.append(f"user {PROXY_USER}")


def _runs_as(pid: int, uid: int) -> bool:
    """Whether a process runs as this user of *our* user database: a container's may have the same number."""
    try:
        theirs = Path(f"/proc/{pid}/root/etc/passwd")
        return Path(f"/proc/{pid}").stat().st_uid == uid and theirs.samefile("/etc/passwd")
    except OSError:  # it ended meanwhile
        return False
