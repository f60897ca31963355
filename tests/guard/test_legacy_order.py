"""Going back to the front: at once, but never a fight."""

from meshagent.guard.legacy_order import FREE_MOVES, Contest


def test_the_first_moves_are_free_and_then_each_waits_twice_as_long() -> None:
    contest, now, waits = Contest(), 1000.0, []
    for _ in range(14):
        waits.append(contest.wait(now))
        now += waits[-1]
        contest = contest.moved(now)
    assert waits == [0.0] * FREE_MOVES + [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0]


def test_it_is_contested_from_the_first_move_that_had_to_wait_until_there_was_peace() -> None:
    contest = Contest()
    for _ in range(FREE_MOVES):
        contest = contest.moved(5.0)
    assert not contest.contested(5.0)
    contest = contest.moved(6.0)
    assert contest.contested(6.0) and contest.contested(800.0)
    assert not contest.contested(1000.0) and contest.wait(1000.0) == 0.0
    assert contest.moved(1000.0) == Contest(1, 1000.0)


def test_a_program_that_comes_every_quarter_of_an_hour_is_answered_at_once() -> None:
    contest = Contest()
    for round_ in range(1, 20):
        assert contest.wait(round_ * 900.0) == 0.0
        contest = contest.moved(round_ * 900.0)
