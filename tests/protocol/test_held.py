"""What a client has, as a layer above what all have, is what a map of its own would be."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from meshagent.protocol.held import ABSENT, Held


@given(st.integers(0, 1 << 32))
@settings(max_examples=200, deadline=None)
def test_over_any_history_it_is_a_map_of_its_own_and_the_shared_one_never_changes(seed: int) -> None:
    dice = random.Random(seed)
    names = [f"n{number}" for number in range(8)]
    shared = {name: dice.choice("12") for name in dice.sample(names, 5)}
    untouched, plain, held = dict(shared), dict(shared), Held(shared)
    for _ in range(40):
        name = dice.choice(names)
        match dice.randrange(4):
            case 0:
                assert held.drop(name) == plain.pop(name, None)
            case 1:
                held.put({name: ABSENT})
                plain[name] = ABSENT
            case 2:
                held.put({name: "2"})
                plain[name] = "2"
            case _:
                other = {**plain, name: "3"} if dice.random() < 0.5 else dict(plain)
                assert held.equals(other) == (plain == other)
        assert {each: held.get(each) for each in names if each in held} == plain
        assert set(held.names()) == plain.keys()
    assert shared == untouched


def test_clients_that_have_the_same_share_one_map() -> None:
    versions = {"a": "1", "b": "2"}
    first, second = Held({"a": "1", "b": "2"}), Held()
    second.put({"a": "1", "b": "2"})
    assert first.equals(versions) and second.equals(versions)
    assert first._shared is second._shared is versions
