"""What ``status`` says about capture."""

from meshagent.agent.capture import nft
from meshagent.agent.capture.status import Restored, describe, with_state
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided, declared


def state(**changes: object) -> dict[str, object]:
    quiet = {"digest": "", "owned": True, "heals": 0, "last_heal": None, "bypasses": {}, "hangs": 0}
    return quiet | {"pending": None, "rolled_back": None} | changes


def test_in_sync_means_the_guard_holds_exactly_this_intent() -> None:
    intent = decided(Posture.STRICT, services=(declared("web", 80),))
    digest = nft.render(intent).digest
    assert not describe(intent, state(), digest).in_sync
    status = describe(intent, state(digest=digest), digest)
    assert status.in_sync and status.active
    assert (status.ports, status.strict_ports) == ((80,), (80,))


def test_observe_is_not_active() -> None:
    assert not describe(decided(Posture.OBSERVE), state(), "").active


def test_the_guards_account_is_shown() -> None:
    account = state(
        heals=2,
        hangs=3,
        last_heal={"at": 7.0, "pid": 42, "name": "ufw", "what": "table removed"},
        bypasses={"proxy": {"since_at": 5.0, "reason": "x"}, "resolver": {"since_at": 1.0, "reason": "y"}},
        pending={"until_at": 9.0, "note": {}},
        rolled_back={"at": 1.0, "reason": "not confirmed in time", "note": {}},
    )
    status = with_state(describe(decided(Posture.OUTBOUND), state(), ""), account)
    assert (status.bypassed_since, status.pending_confirm_until) == (5.0, 9.0)
    assert status.restored == Restored(2, 7.0, 42, "ufw", "table removed")
    assert status.hangs == 3
    assert status.rolled_back == "not confirmed in time"
