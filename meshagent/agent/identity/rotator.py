"""The loop that keeps the workload certificate young: a new key each time, checked, stored, then published.

Order matters: what comes back is validated, then written as one set, and only then published to those who use it
(SDS for Envoy, the session to the hub). If any of it fails the set in use stays, and the condition says for how long.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from meshagent.agent.identity.hubclock import SKEW_LIMIT, HubClock
from meshagent.agent.identity.keys import WorkloadKeyKind, build_csr, generate_workload_key
from meshagent.agent.identity.schedule import (
    RETRY_LONGEST,
    URGENT,
    retry_delay,
    seconds_until_renewal,
    time_left_text,
)
from meshagent.agent.identity.svid import identity_from_answer
from meshagent.model.condition import ConditionSink
from meshagent.model.errors import MeshagentError
from meshagent.model.identity import Identity
from meshagent.runtime.latest import Latest

log = structlog.get_logger()

CONDITION = "cert-renewal-failing"

#: No sleep is longer than this: after a machine was suspended the monotonic clock knows nothing of the time it slept.
LONGEST_SLEEP = 600.0

#: Codes of the signer's errors that no retry will mend: try rarely, a person has to act.
PERMANENT = frozenset({"signing-refused", "credential-refused"})


class CertificateSigner(Protocol):
    """Whoever signs CSRs: the hub or istiod (``agent/upstream/signer.py``)."""

    async def sign(self, csr_pem: str) -> Sequence[str]:
        """PEM texts: leaf, intermediates, last the root bundle. Raises ``MeshagentError``; see ``PERMANENT``."""
        ...


class IdentityStore(Protocol):
    """Where the set is kept (``keystore.Keystore``)."""

    def save_identity(self, identity: Identity) -> None: ...


@dataclass(frozen=True, slots=True)
class RotationState:
    """How renewal is going: ``failures`` in a row, the last one's text, the next attempt (control plane's time)."""

    failures: int = 0
    last_error: str = ""
    next_at: datetime | None = None


class Rotator:
    """Renews ``identity`` in time; ``run`` until cancelled, ``rotate_now`` whenever asked."""

    def __init__(
        self,
        identity: Latest[Identity],
        signer: CertificateSigner,
        store: IdentityStore,
        hub_clock: HubClock,
        conditions: ConditionSink,
        *,
        key_kind: WorkloadKeyKind = WorkloadKeyKind.P256,
        spread: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311 - spreads load, hides nothing
    ) -> None:
        self.identity = identity
        self.state: Latest[RotationState] = Latest(RotationState())
        self._signer = signer
        self._store = store
        self._hub_clock = hub_clock
        self._conditions = conditions
        self._key_kind = key_kind
        self._spread = spread
        self._turn = asyncio.Lock()
        self._failures = 0
        self._planned: tuple[int, datetime] | None = None  # identity version -> when

    async def run(self) -> None:
        """Wait until due, renew, again; a failure waits with backoff."""
        while True:
            await self._sleep_until_due()
            with contextlib.suppress(MeshagentError):
                await self.rotate_now()

    async def rotate_now(self) -> Identity:
        """Renew at once; raises ``MeshagentError`` and leaves everything as it was when that can't be done."""
        async with self._turn:
            try:
                renewed = await self._renew()
            except MeshagentError as error:
                self._failed(error)
                raise
            self._succeeded(renewed)
            return renewed

    @property
    def left(self) -> timedelta:
        """How long the certificate in use is still good, by the control plane's clock."""
        return self.identity.value.not_after - self._hub_clock.now()

    async def _renew(self) -> Identity:
        current = self.identity.value
        key_pem = await asyncio.to_thread(generate_workload_key, self._key_kind)  # RSA 4096 takes a second
        answer = await self._signer.sign(build_csr(key_pem, current.spiffe_id))
        renewed = identity_from_answer(
            answer, key_pem, current.spiffe_id, self._hub_clock.now(), trusted_bundle=current.bundle_pem
        )
        self._require_usable(renewed)
        self._store.save_identity(renewed)
        return renewed

    def _require_usable(self, renewed: Identity) -> None:
        """Peers judge by clocks like this host's: a certificate of tomorrow would cut it off while the old one works.

        Near the end of the old one it is taken all the same: then the hub's clock is the better guess.
        """
        early = renewed.not_before - self._hub_clock.wall
        if early > SKEW_LIMIT and self.left > URGENT:
            raise MeshagentError(
                "clock-difference",
                f"the hub's new certificate becomes valid only in {time_left_text(early)} by this host's clock",
                hint="set the clock that is wrong (timedatectl set-ntp true); the certificate in use stays",
            )

    def _succeeded(self, renewed: Identity) -> None:
        self._failures = 0
        self.identity.set(renewed)
        self.state.set(RotationState())
        self._conditions.clear(CONDITION)
        log.info("certificate renewed", serial=renewed.serial, not_after=renewed.not_after.isoformat())

    def _failed(self, error: MeshagentError) -> None:
        self._failures += 1
        wait = self._retry_wait(error)
        next_at = self._hub_clock.now() + timedelta(seconds=wait)
        self.state.set(RotationState(self._failures, error.message, next_at))
        self._conditions.set(
            CONDITION, f"{error.message}; the certificate in use is good for {time_left_text(self.left)}"
        )
        log.warning("certificate not renewed", code=error.code, error=error.message, failures=self._failures)

    def _retry_wait(self, error: MeshagentError) -> float:
        if error.code in PERMANENT:
            return RETRY_LONGEST
        return retry_delay(self._failures, self.left, self._spread())

    async def _sleep_until_due(self) -> None:
        """In slices, so that a forced rotation or a new reading of the hub's clock moves the moment."""
        while True:
            wait = (self.due - self._hub_clock.now()).total_seconds()
            if wait <= 0:
                return
            await asyncio.sleep(min(wait, LONGEST_SLEEP))

    @property
    def due(self) -> datetime:
        """When the next renewal is tried, by the control plane's clock."""
        if self.state.value.next_at is not None:
            return self.state.value.next_at
        if self._planned is None or self._planned[0] != self.identity.version:
            current, now = self.identity.value, self._hub_clock.now()
            wait = seconds_until_renewal(current.not_before, current.not_after, now, self._spread())
            self._planned = self.identity.version, now + timedelta(seconds=wait)
        return self._planned[1]
