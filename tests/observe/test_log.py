"""Log lines: constant text, values in fields, no secrets, in the format of who reads them."""

import ast
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

import meshagent
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


def _calls() -> Iterator[tuple[str, ast.Call]]:
    """Every line of code that logs."""
    package = Path(meshagent.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and re.fullmatch(rf"log\.({'|'.join(log.LEVELS)})", ast.unparse(node.func)):
                yield f"{path.relative_to(package)}:{node.lineno}", node


def test_every_line_that_is_logged_has_a_constant_text_and_what_varies_in_fields() -> None:
    calls = dict(_calls())
    assert len(calls) > 50
    loose = [
        where
        for where, call in calls.items()
        if len(call.args) != 1
        or not isinstance(call.args[0], ast.Constant)
        or not isinstance(call.args[0].value, str)
        or any(keyword.arg is None for keyword in call.keywords)
    ]
    assert loose == []


def test_an_error_of_ours_is_logged_with_its_code() -> None:
    without = []
    for where, call in _calls():
        fields = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        messages = {value.removesuffix(".message") for value in fields.values() if value.endswith("error.message")}
        if any(fields.get("code") != f"{error}.code" for error in messages):
            without.append(where)
    assert without == []


def test_no_line_has_a_field_that_could_hold_a_secret() -> None:
    fields = {(where, keyword.arg or "") for where, call in _calls() for keyword in call.keywords}
    assert [(where, name) for where, name in fields if log.redact(None, "", {name: "x"})[name] != "x"] == []
