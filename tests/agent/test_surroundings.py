"""A table that fills up is told before it is full, and not every other second."""

from meshagent.agent.health.conditions import CONDITIONS
from meshagent.agent.surroundings import Surroundings
from tests.agent.capture.test_controller import Conditions


def test_a_table_that_fills_is_a_condition_until_there_is_room_again() -> None:
    conditions, table = Conditions(), [(0, 1000)]
    surroundings = Surroundings(conditions, lambda: table[-1])
    seen = []
    for count in (100, 849, 850, 990, 800, 751, 749, 849):
        table.append((count, 1000))
        surroundings.look()
        seen.append("conntrack-nearly-full" in conditions.now)
    assert seen == [False, False, True, True, True, True, False, False]
    assert "conntrack-nearly-full" in CONDITIONS


def test_the_text_has_the_numbers() -> None:
    conditions = Conditions()
    Surroundings(conditions, lambda: (262_000, 262_144)).look()
    assert conditions.now == {"conntrack-nearly-full": "262000 of 262144 entries"}


def test_where_conntrack_is_not_loaded_there_is_nothing_to_say() -> None:
    conditions = Conditions()
    Surroundings(conditions, lambda: None).look()
    assert conditions.now == {}
