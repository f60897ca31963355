"""Keeps the kernel at what is wanted: follows posture, services, policy, addresses and facts, and applies.

In: ``Inputs``, each a value one can watch. Out: ``Latest[CaptureStatus]`` and conditions. Changes that come together
are applied together; a failure is retried with a growing pause, and what was in the kernel stays meanwhile.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from meshagent.agent.capture import intent as intents
from meshagent.agent.capture import verify
from meshagent.agent.capture.apply import Applied, Applier, RolledBackError
from meshagent.agent.capture.backend import render
from meshagent.agent.capture.presence import Presence
from meshagent.agent.capture.status import CaptureStatus, describe, with_state
from meshagent.agent.capture.values import HostFacts, Intent, Mode, Wishes
from meshagent.agent.capture.verify import Caller, RuleCount, Sync
from meshagent.config.settings import CaptureConfig
from meshagent.guard.client import GuardClient, GuardUnreachableError
from meshagent.guard.state import NFT, Ruleset
from meshagent.machine import netlink
from meshagent.model.address import MeshAddress
from meshagent.model.condition import ConditionSink
from meshagent.model.doors import OpenDoor, PortDoor
from meshagent.model.errors import MeshagentError
from meshagent.model.policy import HostPolicy
from meshagent.model.posture import Posture
from meshagent.model.service import DeclaredService
from meshagent.runtime.backoff import Backoff
from meshagent.runtime.latest import Latest

log = structlog.get_logger(__name__)

#: A name table of 1,000 services arrives in many steps; together they are one apply.
_SETTLE_SECONDS = 0.02
#: The guard heals and bypasses by itself; this is how soon the agent shows it.
_LOOK_SECONDS = 2.0

__all__ = ["CaptureController", "CaptureStatus", "Inputs"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that decides what is captured. ``suspended``: ``capture off`` was asked for; ``too_old``: what is
    known of the mesh is older than it may be."""

    facts: Latest[HostFacts]
    posture: Latest[Posture]
    config: Latest[CaptureConfig] = field(default_factory=lambda: Latest(CaptureConfig()))
    services: Latest[tuple[DeclaredService, ...]] = field(default_factory=lambda: Latest(()))
    policy: Latest[HostPolicy] = field(default_factory=lambda: Latest(HostPolicy()))
    mesh: Latest[frozenset[MeshAddress]] = field(default_factory=lambda: Latest(frozenset()))
    unserved: Latest[frozenset[MeshAddress]] = field(default_factory=lambda: Latest(frozenset()))
    shut: Latest[frozenset[int]] = field(default_factory=lambda: Latest(frozenset()))
    capture_dns: Latest[bool] = field(default_factory=lambda: Latest(False))
    doors: Latest[frozenset[OpenDoor]] = field(default_factory=lambda: Latest(frozenset()))
    ports: Latest[frozenset[PortDoor]] = field(default_factory=lambda: Latest(frozenset()))
    suspended: Latest[bool] = field(default_factory=lambda: Latest(False))
    too_old: Latest[bool] = field(default_factory=lambda: Latest(False))

    def all(self) -> tuple[Latest[Any], ...]:
        return (
            self.facts,
            self.posture,
            self.config,
            self.services,
            self.policy,
            self.mesh,
            self.unserved,
            self.shut,
            self.capture_dns,
            self.doors,
            self.ports,
            self.suspended,
            self.too_old,
        )


class CaptureController:
    """Wire it with ``Inputs``, run it as a task. ``start_guard`` is called when no guard answers.

    ``arm`` is called with the guard's state and the failure policy before anything is captured, in a thread; what it
    raises counts as capture's own failure.
    """

    def __init__(
        self,
        inputs: Inputs,
        guard: GuardClient,
        conditions: ConditionSink,
        start_guard: Callable[[], Awaitable[None]] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.status: Latest[CaptureStatus] = Latest(CaptureStatus())
        self._inputs, self._guard, self._conditions = inputs, guard, conditions
        self._applier = Applier(guard)
        self._start_guard = start_guard
        self._backoff = Backoff(first=0.2, limit=5.0, rng=rng or random.SystemRandom())
        self._lock = asyncio.Lock()
        self._heals = 0
        self._draining = False
        self._presence = Presence()
        self.arm: Callable[[dict[str, Any], bool], None] = lambda state, fail_open: None

    async def run(self) -> None:
        """Follow the inputs until cancelled; the rules stay as they are then."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_inputs())
            group.create_task(self._follow_routes())

    async def _follow_inputs(self) -> None:
        applied: tuple[int, ...] = ()
        with contextlib.closing(self._presence):
            while True:
                current = tuple(value.version for value in self._inputs.all())
                if await (self._look() if current == applied else self.apply_now()):
                    applied, pause = current, _LOOK_SECONDS
                else:
                    applied, pause = (), self._backoff.next()
                await self._changed(current, pause)
                await asyncio.sleep(_SETTLE_SECONDS)

    # --- what other parts of the agent ask ---------------------------------------------------------------------------

    def decide(self, posture: Posture | None = None) -> Intent:
        """The intent for now, or as it would be with another posture. Raises ``MeshagentError``.

        What is too old to go by sends nothing new into the mesh, unless policy lets nothing go around it.
        """
        inputs = self._inputs
        wanted = posture or (Posture.OBSERVE if inputs.suspended.value else inputs.posture.value)
        wishes = Wishes(
            posture=wanted,
            config=inputs.config.value,
            services=inputs.services.value,
            policy=inputs.policy.value,
            mesh=inputs.mesh.value,
            unserved=inputs.unserved.value,
            shut=inputs.shut.value,
            capture_dns=inputs.capture_dns.value,
            draining=self.status.value.active or self._draining,
            doors=inputs.doors.value,
            ports=inputs.ports.value,
        )
        intent = intents.decide(wishes, inputs.facts.value)
        if inputs.too_old.value and intent.fail_open:
            return intents.decide(replace(wishes, posture=Posture.OBSERVE), inputs.facts.value)
        return intent

    def plan(self, posture: Posture | None = None) -> Ruleset:
        """What would be in the kernel; for ``plan``."""
        return render(self.decide(posture))

    async def apply_now(self) -> bool:
        """Apply what is wanted now; False when it failed (the condition says why, and it will be tried again)."""
        async with self._lock:
            try:
                state = await asyncio.to_thread(self._guard.state)
                intent = self._decide_with_kernel(state)
                done = await asyncio.to_thread(self._act, intent, state)
                state = await asyncio.to_thread(self._guard.state)
            except MeshagentError as error:
                await self._failed(error)
                return False
            self._backoff.reset()
            for code in ("capture-failed", "guard-down"):
                self._conditions.clear(code)
            if done.action != "kept":
                log.info("capture applied", action=done.action, owned=done.owned, mode=intent.mode.value)
            self._presence.follow(state["pid"])
            self.status.set(describe(intent, state, done.digest))
            self._tell_waiting(intent)
            return True

    def _tell_waiting(self, intent: Intent) -> None:
        if intent.waiting:
            self._conditions.set("capture-waiting", "; ".join(intent.waiting))
        else:
            self._conditions.clear("capture-waiting")

    async def begin_trial(self, seconds: float, note: dict[str, str]) -> float:
        """Call before a change that must be confirmed: unconfirmed, the guard goes back to posture observe by itself.

        Returns when that happens, seconds since the epoch. ``note`` comes back in ``rolled_back``.
        """
        async with self._lock:
            state = await asyncio.to_thread(self._guard.state)
            self._draining = self._draining or bool(state["installed"] or state["anchor"])
            back_to = render(replace(self.decide(Posture.OBSERVE), mode=Mode.DRAIN))
            until = await asyncio.to_thread(self._guard.deadman, seconds, note, back_to)
            self.status.set(replace(self.status.value, pending_confirm_until=until))
            return until

    async def confirm(self) -> bool:
        """Keep the pending change; False when none was pending."""
        confirmed = await asyncio.to_thread(self._guard.confirm)
        self.status.set(replace(self.status.value, pending_confirm_until=None))
        return confirmed

    async def acknowledge(self) -> None:
        """A person is deciding anew: what was rolled back no longer holds capture back."""
        await asyncio.to_thread(self._guard.acknowledge)
        self._conditions.clear("rolled-back")

    async def remove(self) -> None:
        """For ``leave``: everything of ours out of the kernel, the anchor last."""
        async with self._lock:
            await asyncio.to_thread(self._applier.remove)
            self.status.set(CaptureStatus())

    async def callers(self) -> tuple[Caller, ...]:
        """Plain-text callers of the last day."""
        return verify.callers(await asyncio.to_thread(self._guard.listing))

    async def counts(self) -> tuple[RuleCount, ...]:
        """Rules with their reasons and counters."""
        return verify.counts(await asyncio.to_thread(self._guard.listing))

    async def verify(self) -> Sync:
        """Compare the kernel with what we put there."""
        return await asyncio.to_thread(self._applier.sync)

    async def differences(self) -> tuple[str, ...]:
        """Rules that the kernel has too few or too many of, in words; legacy tables are only compared as a whole."""
        wanted = self.plan()
        listing = await asyncio.to_thread(self._guard.listing)
        return verify.differences(wanted.table, listing) if wanted.backend == NFT else ()

    # --- following ---------------------------------------------------------------------------------------------------

    def _act(self, intent: Intent, state: dict[str, Any]) -> Applied:
        if intent.mode is Mode.ACTIVE:
            self.arm(state, intent.fail_open)
        return self._applier.apply(intent)

    def _decide_with_kernel(self, state: dict[str, Any]) -> Intent:
        """Whether open connections may need looking after is known to the kernel, also after a restart of the agent."""
        self._draining = bool(state["installed"] or state["anchor"])
        if state["rolled_back"]:
            self._conditions.set("rolled-back", str(state["rolled_back"]["reason"]))
            return self.decide(Posture.OBSERVE)
        return self.decide()

    async def _failed(self, error: MeshagentError) -> None:
        code = "capture-failed"
        if isinstance(error, RolledBackError):
            code = "rolled-back"
        elif isinstance(error, GuardUnreachableError):
            code = "guard-down"
        self._conditions.set(code, error.message)
        self.status.set(replace(self.status.value, in_sync=False, error=error.message))
        log.warning("capture could not be applied", code=error.code, error=error.message)
        if code == "guard-down" and self._start_guard is not None:
            try:
                await self._start_guard()
            except MeshagentError as start_error:
                log.warning("guard could not be started", code=start_error.code, error=start_error.message)

    async def _look(self) -> bool:
        """What the guard did by itself: bypasses, healing, a roll-back, or its own end. False where that failed."""
        try:
            state = await asyncio.to_thread(self._guard.state)
        except MeshagentError as error:
            await self._failed(error)
            return False
        lost = self.status.value.active and not state["installed"]  # the guard was restarted and holds nothing
        if lost or (state["rolled_back"] and not self.status.value.rolled_back):
            return await self.apply_now()
        self._report_heals(state)
        self.status.set(with_state(self.status.value, state))
        return True

    async def _follow_routes(self) -> None:
        async for _ in netlink.changes():
            try:
                if await asyncio.to_thread(self._applier.heal_routes):
                    log.warning("routes or rules of capture were removed and restored")
            except MeshagentError as error:
                log.warning("routes of capture could not be restored", code=error.code, error=error.message)

    def _report_heals(self, state: dict[str, Any]) -> None:
        if state.get("contested"):
            self._conditions.set("capture-contested", f"the last was {state['last_heal']['name']}")
        else:
            self._conditions.clear("capture-contested")
        if state["heals"] > self._heals:
            heal = state["last_heal"]
            log.warning(
                "capture rules were changed and restored", pid=heal["pid"], name=heal["name"], what=heal["what"]
            )
        self._heals = state["heals"]

    async def _changed(self, versions: tuple[int, ...], timeout: float) -> None:
        """Wait until an input is newer than ``versions`` or the guard ends, at most ``timeout`` seconds."""
        inputs = zip(self._inputs.all(), versions, strict=True)
        waits = [asyncio.ensure_future(value.newer(version)) for value, version in inputs]
        waits.append(asyncio.ensure_future(self._presence.gone()))
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
