"""State files that can't be used are noticed, set aside and reported; never an exception, never a lost key."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshagent.machine.state import read_state, write_state

DATA = {"name": "web", "n": 1, "list": ["ä", None, 1.5], "map": {"b": 1, "a": 2}}


def test_what_was_written_is_read_with_its_format(tmp_path: Path) -> None:
    path = tmp_path / "enrolment.json"
    write_state(path, DATA, format=3)
    found = read_state(path, format=5)
    assert (found.data, found.format, found.problem) == (DATA, 3, "")
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_absent_file_is_no_problem(tmp_path: Path) -> None:
    found = read_state(tmp_path / "none")
    assert (found.data, found.problem, found.set_aside) == (None, "", None)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda raw: raw[: len(raw) // 2], "not a whole state file"),
        (lambda raw: b"", "not a whole state file"),
        (lambda raw: b"\xff\xfe" + raw, "not a whole state file"),
        (lambda raw: raw.replace(b"web", b"wob"), "its checksum is wrong"),
        (lambda raw: raw.replace(b'"format": 1', b'"format": 9'), "written by a newer version"),
        (lambda raw: b"[" * 100_000, "not a whole state file"),
        (lambda raw: b"[1, 2]", "not a whole state file"),
        (lambda raw: b'{"format": "1", "sha256": "", "data": 1}', "not a state file"),
    ],
)
def test_damage_is_named_and_the_file_set_aside(tmp_path: Path, damage, problem: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "cache.json"
    write_state(path, DATA)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    found = read_state(path)
    assert problem in found.problem
    assert found.data is None
    assert found.set_aside is not None
    assert found.set_aside.read_bytes() == damaged
    assert not path.exists()
    assert read_state(path).problem == ""


def test_a_precious_file_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    write_state(path, DATA, format=2)
    found = read_state(path, format=1, precious=True)
    assert "newer version" in found.problem
    assert found.set_aside is None
    assert path.exists()


def test_a_file_re_indented_by_a_person_is_still_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_state(path, DATA)
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert read_state(path).data == DATA


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(at=st.integers(0, 200), byte=st.binary(min_size=1, max_size=1))
def test_no_single_changed_byte_passes_for_other_data(tmp_path: Path, at: int, byte: bytes) -> None:
    path = tmp_path / "state.json"
    write_state(path, DATA)
    raw = bytearray(path.read_bytes())
    at %= len(raw)
    raw[at : at + 1] = byte
    path.write_bytes(bytes(raw))
    assert read_state(path).data in (None, DATA)
