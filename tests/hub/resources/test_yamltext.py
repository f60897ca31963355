"""YAML in, within bounds, with lines; hostile files end with a line number."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshagent.hub.resources.yamltext import MAX_BYTES, MAX_DOCUMENTS, YamlProblem, read_documents

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)


def test_every_field_knows_its_line() -> None:
    first, second = read_documents("a: 1\nb:\n  - x\n  - c: y\n---\n\nd: {e: null}\n")
    assert first.value == {"a": 1, "b": ["x", {"c": "y"}]} and first.line == 1
    assert first.line_of(("b", 1, "c")) == 4 and first.line_of(("b", 1, "missing", "too")) == 4
    assert second.value == {"d": {"e": None}} and second.line == 7


def test_scalars_are_those_of_yaml_1_2() -> None:
    (document,) = read_documents("[yes, no, on, 0777, 0x10, 1e3, 1.5, true, ~, '1', 2026-01-01, 1:30, =, .inf]")
    assert document.value == [
        "yes", "no", "on", 777, "0x10", 1000.0, 1.5, True, None, "1", "2026-01-01", "1:30", "=", ".inf",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (BOMB, 1, "anchors and aliases"),
        ("a: 1\nb: &x 2\n", 2, "anchors and aliases"),
        ("a: *x\n", 1, "anchors and aliases"),
        ("a: 1\nb: 2\na: 3\n", 3, "given twice"),
        ("a:\n- !!python/object/apply:os.system [id]\n", 2, "tags"),
        ("a: !include /etc/shadow\n", 1, "tags"),
        ("[" * 100 + "]" * 100, 1, "nested more than"),
        ("- " * 5000, 1, "nested more than"),
        ("a: [1,\nb: }\n", 2, ""),
        ("a: 'open\n", 2, ""),
        ("? [a]\n: b\n", 1, "plain text"),
        ("a: \0\n", 1, "not YAML"),
        ("---\n" + "a: 1\n---\n" * (MAX_DOCUMENTS + 1), 2 * MAX_DOCUMENTS + 1, "more than 2000 documents"),
        ("a: " + "x" * MAX_BYTES, 1, "bigger than"),
    ],
)
def test_a_hostile_or_broken_file_ends_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(YamlProblem) as caught:
        list(read_documents(text))
    assert caught.value.line == line and words in caught.value.message


def test_documents_before_a_broken_one_are_still_read() -> None:
    found = []
    with pytest.raises(YamlProblem):
        for document in read_documents("a: 1\n---\nb: 2\n---\nc: [\n"):
            found.append(document.value)
    assert found == [{"a": 1}, {"b": 2}]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="a:- \n[]{}&*!?|>'\"#%@`,\t\\0=~<é\r", max_size=60))
def test_whatever_comes_nothing_but_a_problem_with_a_line_is_raised(text: str) -> None:
    try:
        list(read_documents(text))
    except YamlProblem as problem:
        assert problem.line >= 1 and problem.message
