"""When a proxy counts as hung, and when as well again."""

from meshagent.guard import pulse
from meshagent.guard.pulse import INTERVAL, PATIENCE, Pulse


def silent_since(now: float, found: Pulse | None = None) -> Pulse:
    return (found or pulse.begin(now)).asking(now)


def hang(found: Pulse, now: float) -> Pulse:
    found = silent_since(now, found)
    assert found.silent(now + PATIENCE)
    return found.stopped(now + PATIENCE)


def answers_needed(found: Pulse, now: float) -> int:
    count = 0
    while found.hung:
        found, count, now = found.asking(now).answered(now), count + 1, now + INTERVAL
    return count


def test_a_proxy_that_stops_right_after_an_answer_is_found_within_two_seconds() -> None:
    assert INTERVAL + PATIENCE < 2
    found = pulse.begin(0.0).asking(0.0).answered(0.0)
    assert not found.wants_to_ask(INTERVAL - 0.01) and found.wants_to_ask(INTERVAL)
    assert found.asking(INTERVAL).silent(INTERVAL + PATIENCE)


def test_silence_shorter_than_patience_is_nothing() -> None:
    assert not silent_since(0.0).silent(PATIENCE - 0.01)


def test_time_in_which_the_guard_did_not_run_is_no_silence() -> None:
    found = silent_since(0.0)
    assert not found.seen(30.0).silent(30.0), "a suspended laptop"
    assert found.seen(0.5).seen(1.0).silent(PATIENCE), "while it ran all the time"


def test_one_answer_is_not_enough_to_be_well_again() -> None:
    found = hang(pulse.begin(0.0), 0.0)
    assert found.hung and found.asking(5.0).answered(5.0).hung
    assert answers_needed(found, 5.0) == 2


def test_a_proxy_that_hangs_again_and_again_must_be_well_for_longer() -> None:
    found, needed = pulse.begin(0.0), []
    for number in range(7):
        found = hang(found, 5.0 * number)
        needed.append(answers_needed(found, 5.0 * number))
        found = Pulse(**{name: getattr(found, name) for name in Pulse.__slots__} | {"hung": False, "asked_at": None})
    assert needed == [2, 4, 8, 16, 32, 32, 32]
    assert answers_needed(hang(found, 1000.0), 1000.0) == 2, "forgiven after a minute"


def test_a_question_to_a_hung_proxy_is_asked_anew_and_the_silence_goes_on() -> None:
    found = hang(pulse.begin(0.0), 0.0)
    assert not found.wants_to_ask(PATIENCE) and found.wants_to_ask(3.0)
    assert found.asking(3.0).asked_at == 0.0
