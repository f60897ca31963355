"""Renewal: what is believed, kept and told."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshagent.agent.identity.hubclock import HubClock
from meshagent.agent.identity.keystore import Keystore
from meshagent.agent.identity.rotator import CONDITION, Rotator
from meshagent.model.errors import MeshagentError
from meshagent.model.identity import Identity
from meshagent.runtime.clock import SystemClock
from meshagent.runtime.latest import Latest
from tests.agent.recorder import Recorder
from tests.fakes.authority import Authority
from tests.fakes.eventually import eventually
from tests.fakes.signed import answer, fresh_identity


class FakeSigner:
    """Signs like a hub; ``fault`` makes it fail, ``bend`` makes its answers wrong."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.fault: MeshagentError | None = None
        self.bend: Callable[[list[str]], list[str]] = lambda chain: chain
        self.csrs: list[str] = []
        self.now: datetime | None = None  # another clock than this machine's

    async def sign(self, csr_pem: str) -> Sequence[str]:
        self.csrs.append(csr_pem)
        if self.fault:
            raise self.fault
        return self.bend(answer(self.authority, csr_pem, now=self.now))


class Stage:
    def __init__(self, tmp_path: Path, age: timedelta = timedelta(0)) -> None:
        self.authority = Authority()
        self.signer = FakeSigner(self.authority)
        self.store = Keystore(tmp_path)
        self.conditions = Recorder()
        self.identity: Latest[Identity] = Latest(fresh_identity(self.authority, now=datetime.now(UTC) - age))
        self.clock = HubClock(SystemClock())
        self.rotator = Rotator(
            self.identity, self.signer, self.store, self.clock, self.conditions, spread=lambda: -0.99
        )


def test_a_forced_rotation_brings_a_new_key_keeps_it_on_disk_and_publishes_it(tmp_path: Path) -> None:
    async def story() -> None:
        stage = Stage(tmp_path)
        before = stage.identity.value
        renewed = await stage.rotator.rotate_now()
        assert stage.identity.value is renewed
        assert renewed.key_pem != before.key_pem
        assert stage.store.load_identity() == renewed

    asyncio.run(story())


def test_an_answer_for_somebody_else_is_refused_and_the_old_identity_stays(tmp_path: Path) -> None:
    async def story() -> None:
        stage = Stage(tmp_path)
        before = stage.identity.value
        stage.signer.bend = lambda chain: [fresh_identity(stage.authority).chain_pem, chain[1]]
        with pytest.raises(MeshagentError) as caught:
            await stage.rotator.rotate_now()
        assert caught.value.code == "bad-certificate"
        assert stage.identity.value is before
        assert stage.store.load_identity() is None
        assert "good for 6 d" in stage.conditions.held[CONDITION, ""]

    asyncio.run(story())


def test_an_overdue_certificate_is_renewed_by_itself_after_failures_and_the_condition_goes(tmp_path: Path) -> None:
    async def story() -> None:
        stage = Stage(tmp_path, age=timedelta(days=3))
        stage.signer.fault = MeshagentError("signing-unavailable", "the hub is away")
        before = stage.identity.value
        running = asyncio.create_task(stage.rotator.run())
        await eventually(lambda: stage.rotator.state.value.failures == 1)
        assert stage.conditions.codes() == [CONDITION]
        stage.signer.fault = None
        await eventually(lambda: stage.identity.value is not before)
        assert stage.conditions.codes() == []
        assert len(set(stage.signer.csrs)) == len(stage.signer.csrs)  # a new key for every attempt
        running.cancel()

    asyncio.run(story())


def test_a_refusal_that_no_retry_mends_is_tried_rarely(tmp_path: Path) -> None:
    async def story() -> None:
        stage = Stage(tmp_path)
        stage.signer.fault = MeshagentError("signing-refused", "no such host")
        with pytest.raises(MeshagentError):
            await stage.rotator.rotate_now()
        next_at = stage.rotator.state.value.next_at
        assert next_at and next_at - stage.clock.now() > timedelta(minutes=4)

    asyncio.run(story())


def test_a_wall_clock_that_jumps_a_day_does_not_move_the_renewal(tmp_path: Path) -> None:
    async def story() -> None:
        stage = Stage(tmp_path)
        jumping = JumpingClock()
        stage.clock = HubClock(jumping)
        stage.clock.heard(int(datetime.now(UTC).timestamp() * 1000))
        jumping.offset = timedelta(days=30)
        rotator = Rotator(stage.identity, stage.signer, stage.store, stage.clock, stage.conditions)
        assert rotator.left > timedelta(days=6)
        assert stage.clock.skew > timedelta(days=29)
        running = asyncio.create_task(rotator.run())
        for _ in range(20):
            await asyncio.sleep(0)
        assert stage.signer.csrs == []
        running.cancel()

    asyncio.run(story())


def test_a_certificate_of_tomorrow_is_refused_until_the_old_one_is_nearly_over(tmp_path: Path) -> None:
    """A hub whose clock is a day ahead; peers, whose clocks are right, would shut the host out."""

    async def story(age: timedelta) -> None:
        stage = Stage(tmp_path, age=age)
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        stage.clock.heard(int(tomorrow.timestamp() * 1000))
        stage.signer.now = tomorrow
        before = stage.identity.value
        if age:
            assert (await stage.rotator.rotate_now()).serial != before.serial
            return
        with pytest.raises(MeshagentError) as caught:
            await stage.rotator.rotate_now()
        assert caught.value.code == "clock-difference"
        assert "clock" in caught.value.hint
        assert stage.identity.value is before

    asyncio.run(story(timedelta(0)))
    asyncio.run(story(timedelta(days=5, hours=20)))


class JumpingClock:
    def __init__(self) -> None:
        self.offset = timedelta(0)

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset
