"""What the control socket can be asked. Root only: the socket is 0600 and callers are checked again."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meshagent.agent.capture.controller import CaptureController
from meshagent.agent.capture.suspension import Suspension
from meshagent.agent.control.peers import build_peers
from meshagent.agent.control.proxy import ProxyMethods
from meshagent.agent.control.status import Known, build_status, from_epoch, rfc3339
from meshagent.agent.envoy.process import Proxy
from meshagent.agent.identity.rotator import Rotator
from meshagent.agent.kept import Kept
from meshagent.agent.names.recent import AskedName
from meshagent.agent.relay.relay import Relay
from meshagent.agent.upstream.announce import Announcer
from meshagent.config.edit import set_posture
from meshagent.config.follow import FollowedConfig
from meshagent.guard.client import GuardClient
from meshagent.machine import files
from meshagent.model.address import IPAddress
from meshagent.model.errors import MeshagentError, UsageError
from meshagent.model.identity import Identity
from meshagent.model.posture import Posture
from meshagent.runtime.latest import Latest
from meshagent.transport.local_server import Method

MAX_CONFIRM_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Parts:
    """Who answers. ``known`` collects everything status shows; ``stop`` ends the daemon."""

    config_path: Path
    config: FollowedConfig
    posture: Latest[Posture]
    capture: CaptureController
    suspension: Suspension
    pending_path: Path
    guard: GuardClient
    relay: Relay
    kept: Kept
    rotator: Rotator
    announcer: Announcer
    proxy: Proxy
    known: Callable[[], "asyncio.Future[Known] | Any"]
    stop: asyncio.Event
    hub_addresses: Callable[[], Collection[IPAddress]]
    asked_names: Callable[[], Sequence[AskedName]]


class Methods:
    """Method name -> answer, as docs/cli.md shapes them."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def table(self) -> dict[str, Method]:
        """For ``LocalServer``."""
        return {
            "status": self.status,
            "posture.get": self.posture_get,
            "posture.set": self.posture_set,
            "confirm": self.confirm,
            "peers": self.peers,
            "capture.show": self.capture_show,
            "capture.verify": self.capture_verify,
            "capture.off": self.capture_off,
            "capture.on": self.capture_on,
            "certs": self.certs,
            "certs.rotate": self.certs_rotate,
            "plan.facts": self.plan_facts,
            "leave": self.leave,
            **ProxyMethods(self._parts.proxy).table(),
        }

    async def status(self, _params: dict[str, Any]) -> dict[str, Any]:
        return build_status(await self._parts.known())

    async def posture_get(self, _params: dict[str, Any]) -> dict[str, Any]:
        until = self._parts.capture.status.value.pending_confirm_until
        return {
            "posture": self._parts.posture.value.value,
            "confirm_until": from_epoch(until),
            "suspended": self._parts.suspension.suspended.value,
        }

    async def posture_set(self, params: dict[str, Any]) -> dict[str, Any]:
        """Writes agent.yaml and applies; ``confirm`` seconds arm the guard's dead-man before anything changes."""
        parts = self._parts
        posture, seconds = _posture(params.get("posture")), _seconds(params.get("confirm", 0))
        before = parts.posture.value
        await parts.capture.acknowledge()  # never after the trial began: it may be over already, and must stay undone
        if seconds and posture is not before and not parts.suspension.suspended.value:
            await parts.capture.begin_trial(seconds, {"posture": posture.value, "before": before.value})
        await asyncio.to_thread(set_posture, parts.config_path, posture)
        await parts.config.refresh()
        parts.posture.set(posture)
        await parts.capture.apply_now()
        return await self.posture_get({})

    async def confirm(self, _params: dict[str, Any]) -> dict[str, Any]:
        return {"confirmed": await self._parts.capture.confirm()}

    async def peers(self, _params: dict[str, Any]) -> dict[str, Any]:
        return build_peers(self._parts.relay.serving, self._parts.relay.taps.names.value)

    async def capture_show(self, _params: dict[str, Any]) -> dict[str, Any]:
        counters, status = await self._parts.capture.counts(), self._parts.capture.status.value
        return {
            "backend": status.backend,
            "active": status.active,
            "in_sync": status.in_sync,
            "owned": status.owned,
            "suspended_since": rfc3339(self._parts.suspension.since),
            "captured": list(status.captured),
            "spared": [{"port": spared.port, "reason": spared.reason} for spared in status.spared],
            "ruleset": self._parts.capture.plan().table,
            "counters": [{"chain": c.chain, "reason": c.reason, "packets": c.packets} for c in counters],
        }

    async def capture_verify(self, _params: dict[str, Any]) -> dict[str, Any]:
        found = await self._parts.capture.verify()
        status = self._parts.capture.status.value
        same = found.value == "equal" and status.in_sync
        why = [] if same else [status.error or f"the table in the kernel is {found.value}"]
        why += [] if same else await self._parts.capture.differences()
        return {"in_sync": same, "differences": why}

    async def capture_off(self, _params: dict[str, Any]) -> dict[str, Any]:
        """Nothing new is captured until ``capture.on``, also after a restart; open connections stay.

        A change on trial ends with it: it is neither kept in force nor undone later, nothing is captured.
        """
        parts = self._parts
        changed = await parts.suspension.suspend(datetime.now(UTC))
        if not await parts.capture.apply_now():
            why = parts.capture.status.value.error
            raise MeshagentError(
                "capture-stays",
                f"the rules could not be taken out of the kernel yet: {why}",
                hint="it is tried again by itself; end the guard to be rid of them at once: meshagent status",
            )
        await parts.capture.confirm()
        return self._switched(changed)

    async def capture_on(self, params: dict[str, Any]) -> dict[str, Any]:
        """Capture again what the posture says, on trial for ``confirm`` seconds (0: at once and for good)."""
        parts, seconds = self._parts, _seconds(params.get("confirm", 0))
        undone = parts.capture.status.value.rolled_back is not None
        if not parts.suspension.refresh() and not undone:
            return self._switched(changed=False)
        posture = parts.config.config.value.posture
        await parts.capture.acknowledge()  # never after the trial began: it may be over already, and must stay undone
        if seconds:
            await parts.capture.begin_trial(seconds, {"posture": posture.value, "before": "capture off"})
        await asyncio.to_thread(files.remove_file, parts.pending_path)
        await parts.suspension.resume()
        parts.posture.set(posture)
        await parts.capture.apply_now()
        return self._switched(changed=True)

    def _switched(self, changed: bool) -> dict[str, Any]:
        parts = self._parts
        return {
            "suspended": parts.suspension.suspended.value,
            "since": rfc3339(parts.suspension.since),
            "changed": changed,
            "confirm_until": from_epoch(parts.capture.status.value.pending_confirm_until),
            "daemon": True,
        }

    async def certs(self, _params: dict[str, Any]) -> dict[str, Any]:
        return _certs(self._parts.rotator.identity.value, self._parts.rotator)

    async def certs_rotate(self, _params: dict[str, Any]) -> dict[str, Any]:
        return _certs(await self._parts.rotator.rotate_now(), self._parts.rotator)

    async def plan_facts(self, _params: dict[str, Any]) -> dict[str, Any]:
        """What only the daemon knows of a plan: the mesh's addresses and what the mesh says about our ports."""
        kept = self._parts.kept
        return {
            "mesh": [[str(address.ip), address.port] for address in sorted(kept.mesh.value, key=str)],
            "policy": {str(port): mode.value for port, mode in kept.policy.value.plaintext.items()},
            "redirect": {str(port): reason.value for port, reason in kept.policy.value.redirect.items()},
            "hub": [str(ip) for ip in sorted(self._parts.hub_addresses(), key=str)],
            "taken": [each.text for each in kept.taken.value],
            "asked": [asdict(each) for each in self._parts.asked_names()],
        }

    async def leave(self, _params: dict[str, Any]) -> dict[str, Any]:
        """Say goodbye to the hub and end; capture and proxy stay for ``meshagent leave`` to take down."""
        heard = await self._parts.announcer.goodbye(for_good=True)
        asyncio.get_running_loop().call_later(0.05, self._parts.stop.set)  # after the answer is written
        return {"goodbye": heard}


def _posture(value: object) -> Posture:
    try:
        return Posture(str(value))
    except ValueError:
        known = ", ".join(posture.value for posture in Posture)
        raise UsageError("bad-posture", f"{str(value)[:40]!r} is not a posture", hint=f"known: {known}") from None


def _seconds(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= MAX_CONFIRM_SECONDS:
        raise UsageError("bad-confirm", f"confirm takes 0 to {MAX_CONFIRM_SECONDS} seconds")
    return value


def _certs(identity: Identity, rotator: Rotator) -> dict[str, Any]:
    return {
        "spiffe_id": str(identity.spiffe_id),
        "serial": identity.serial,
        "not_before": rfc3339(identity.not_before),
        "not_after": rfc3339(identity.not_after),
        "renew_at": rfc3339(rotator.due),
        "chain": _split(identity.chain_pem),
        "bundle": _split(identity.bundle_pem),
        "now": from_epoch(time.time()),
    }


def _split(pem: str) -> list[str]:
    """One string per certificate."""
    end = "-----END CERTIFICATE-----\n"
    return [part + end for part in pem.split(end) if part.strip()]
