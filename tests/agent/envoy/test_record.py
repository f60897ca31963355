"""What is remembered of the proxy."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.agent.envoy import record
from meshagent.agent.envoy.record import Record, Records
from meshagent.machine import segments
from meshagent.machine.segments import segment
from meshagent.machine.services import Handle
from meshagent.model.paths import Paths


@pytest.fixture
def paths() -> Iterator[Paths]:
    """pytest's own directories have names too long for the sockets of a root."""
    with tempfile.TemporaryDirectory(prefix="ma-") as short:
        made = Paths(Path(short))
        made.run.mkdir(parents=True)
        made.state.mkdir(parents=True)
        yield made


def test_a_record_comes_back_and_a_damaged_one_counts_as_none(paths: Paths) -> None:
    records = Records(paths)
    assert records.load() is None
    kept = Record(Handle(10, 20, 30, 40), "1.40.0", 0, 1_234_567)
    records.save(kept)
    assert records.load() == kept
    (paths.run / "proxy.json").write_text('{"pid": 1}')
    assert records.load() is None


def test_a_root_keeps_its_number_for_good_and_a_copied_root_gets_its_own(paths: Paths) -> None:
    first = Records(paths).base_id()
    assert Records(paths).base_id(lambda numbers: numbers[7]) == first
    kept = (paths.state / "proxy.json").read_text()
    (paths.state / "proxy.json").write_text(kept.replace(str(paths.root), "/elsewhere"))
    assert Records(paths).base_id(lambda numbers: numbers[7]) == record.BASE_IDS[7]


def test_a_number_whose_segment_exists_is_not_taken(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SHARED_MEMORY", tmp_path)
    segment(record.BASE_IDS[1]).touch()
    picks = iter([1, 1, 2])
    assert Records(paths).base_id(lambda numbers: numbers[next(picks)]) == record.BASE_IDS[2]


def test_leaving_removes_the_segment_and_the_number(
    paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SHARED_MEMORY", tmp_path)
    number = Records(paths).base_id()
    segment(number).touch()
    Records(paths).forget_base_id()
    assert not segment(number).exists()
    assert not (paths.state / "proxy.json").exists()
    Records(paths).forget_base_id()
