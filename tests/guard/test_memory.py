"""The roll-back file."""

from pathlib import Path

import pytest

from meshagent.guard import memory
from meshagent.guard.state import Gate, RolledBack, Ruleset, State, Trial

RULES = Ruleset(
    "table inet meshagent {\n}\n", "", True, "d", {"proxy": Gate("", "")}, ("callers4",), sets={"claimed4": bytes(6)}
)


@pytest.mark.parametrize(
    "state",
    [
        State(trial=Trial(10.5, 1000.0, RULES, {"from": "observe"})),
        State(rolled_back=RolledBack(5.0, "why", {"to": "strict"})),
        State(),
    ],
)
def test_what_is_saved_comes_back(tmp_path: Path, state: State) -> None:
    path = tmp_path / "deep/rollback.json"
    memory.save(path, state, "boot-1")
    assert memory.load(path) == (state, "boot-1")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["rollback.json"]


def test_no_file_is_no_memory(tmp_path: Path) -> None:
    assert memory.load(tmp_path / "rollback.json") == (State(), "")
    memory.forget(tmp_path / "rollback.json")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": 99}', b'{"format":1,"boot":"b","trial":{"deadline":"x"}}']
)
def test_a_damaged_file_is_set_aside_never_fatal(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rollback.json"
    path.write_bytes(content)
    assert memory.load(path) == (State(), "")
    assert not path.exists()
    assert (tmp_path / "rollback.damaged").read_bytes() == content


def test_a_ruleset_that_names_another_table_is_not_taken_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "rollback.json"
    memory.save(path, State(trial=Trial(1.0, 2.0, Ruleset("table inet other {\n}\n"))), "b")
    assert memory.load(path)[0] == State()
