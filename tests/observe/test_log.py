"""Log lines: constant text, values in fields, no secrets, in the format of who reads them."""

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from meshagent.model.errors import UsageError
from meshagent.observe import log


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    yield io.StringIO()
    structlog.reset_defaults()


def test_kv_is_one_line_that_a_person_can_read(stream: io.StringIO) -> None:
    log.set_up(format="kv", stream=stream)
    structlog.get_logger().info("session opened", address="10.0.0.1:15012", reason="a b=c\nd")
    line = stream.getvalue()
    assert line.endswith('Z info    session opened address=10.0.0.1:15012 reason="a b=c\\nd"\n')
    assert line.count("\n") == 1


def test_json_is_one_document_per_line(stream: io.StringIO) -> None:
    log.set_up(format="json", stream=stream)
    structlog.get_logger().warning("renewal failed", seconds=1.5, who=object)
    document = json.loads(stream.getvalue())
    assert (document["event"], document["level"], document["seconds"]) == ("renewal failed", "warning", 1.5)
    assert document["time"].endswith("Z")


def test_journal_gets_a_priority_on_every_line_and_no_time(stream: io.StringIO) -> None:
    log.set_up(format="journal", stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger().error("part failed", exc_info=True)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "<3>part failed"
    assert all(line.startswith("<3>") for line in lines)
    assert lines[-1] == "<3>ValueError: broken"


@pytest.mark.parametrize("format", ["kv", "json", "journal"])
def test_secrets_are_never_written(stream: io.StringIO, format: str) -> None:
    log.set_up(format=format, stream=stream)
    secrets = {"token": "s3cret", "private_key": "s3cret", "db_password": "s3cret", "headers": {"Cookie": "s3cret"}}
    structlog.get_logger().info("request", token_id="abc", public_key="pub", **secrets)
    assert "s3cret" not in stream.getvalue()
    assert "abc" in stream.getvalue()
    assert "pub" in stream.getvalue()


def test_levels_below_are_left_out(stream: io.StringIO) -> None:
    log.set_up(level="warning", format="kv", stream=stream)
    structlog.get_logger().info("quiet")
    assert stream.getvalue() == ""


def test_auto_is_kv_where_the_journal_does_not_read(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    log.set_up(stream=stream)
    structlog.get_logger().info("hello")
    assert "info    hello" in stream.getvalue()


@pytest.mark.parametrize(
    ("level", "format", "known"), [("loud", "kv", "debug, info"), ("info", "xml", "auto, journal")]
)
def test_unknown_words_are_refused_with_the_known_ones(level: str, format: str, known: str) -> None:
    with pytest.raises(UsageError) as caught:
        log.set_up(level, format)
    assert known in caught.value.hint
