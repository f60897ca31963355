"""Lines in and out of guard.sock."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.guard import wire
from meshagent.guard.wire import LineBuffer, Request, RequestError


def test_a_request_survives_the_way() -> None:
    line = wire.request(7, "apply", {"table": "x\ny"}).removesuffix(b"\n")
    assert b"\n" not in line
    assert wire.parse_request(line) == Request(7, "apply", {"table": "x\ny"})


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_never_raises_anything_else(line: bytes) -> None:
    try:
        wire.parse_request(line)
    except RequestError as error:
        assert error.code == "bad-request"


@pytest.mark.parametrize(
    "line",
    [b"[]", b"1", b'{"id": "1", "method": "x"}', b'{"id": 1}', b'{"id":1,"method":"x","params":[]}', b"[" * 9999],
)
def test_json_that_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(RequestError):
        wire.parse_request(line)


@given(st.lists(st.binary(max_size=20).filter(lambda part: b"\n" not in part), max_size=6), st.integers(1, 7))
def test_lines_come_out_whole_however_they_arrive(lines: list[bytes], step: int) -> None:
    stream, buffer = b"".join(line + b"\n" for line in lines), LineBuffer(1000)
    found = []
    for start in range(0, len(stream), step):
        found += buffer.feed(stream[start : start + step])
    assert found == lines


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    buffer = LineBuffer(100)
    assert list(buffer.feed(b"x" * 100)) == []
    with pytest.raises(RequestError, match="longer"):
        list(buffer.feed(b"x"))


def test_an_error_says_what_and_what_to_do() -> None:
    document = json.loads(wire.failure(3, RequestError("a-code", "what", "do this")))
    assert document == {"id": 3, "error": {"code": "a-code", "message": "what", "hint": "do this"}}


@pytest.mark.parametrize(("value", "kind"), [("1", int), (True, int), (1, bool), (None, str), ([], dict), (1, float)])
def test_a_parameter_has_exactly_its_type(value: object, kind: type) -> None:
    with pytest.raises(RequestError):
        wire.take({"name": value}, "name", kind)


def test_an_absent_parameter_has_its_default_or_is_missed() -> None:
    assert wire.take({}, "name", str, "x") == "x"
    with pytest.raises(RequestError):
        wire.take({}, "name", str)
