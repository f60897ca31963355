import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.config.tree import ConfigError, from_json
from meshagent.config.yamltext import MAX_DEPTH, parse_yaml


def value(text: str) -> object:
    (node,) = parse_yaml(text.encode(), "f")
    return _plain(node.to_json())


def _plain(data: object) -> object:
    _, item = data  # type: ignore[misc]
    if isinstance(item, list):
        return [_plain(one) for one in item]
    return {key: _plain(one) for key, one in item.items()} if isinstance(item, dict) else item


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 017", {"a": 17}),
        ("a: 0o17", {"a": 15}),
        ("a: 0x1F", {"a": 31}),
        ("a: yes", {"a": "yes"}),
        ("a: on", {"a": "on"}),
        ("a: true", {"a": True}),
        ("a: 'true'", {"a": "true"}),
        ("a: 1:30", {"a": "1:30"}),
        ("a: 1_000", {"a": "1_000"}),
        ("a: 1.5", {"a": 1.5}),
        ("a: ~", {"a": None}),
        ("a:", {"a": None}),
        ("a: ''", {"a": ""}),
        ("a: ١٢", {"a": "١٢"}),
        ("a: " + "9" * 30, {"a": "9" * 30}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, expected: object) -> None:
    assert value(text) == expected


def test_every_value_knows_its_line_also_after_json() -> None:
    (node,) = parse_yaml(b"# c\na: 1\nb:\n  - x\n  - y\n", "f")
    again = from_json(node.to_json())
    assert again == node and isinstance(node.value, dict)
    inner = node.value["b"].value
    assert isinstance(inner, tuple)
    assert [node.value["a"].line, node.value["b"].line, inner[0].line, inner[1].line] == [2, 3, 4, 5]


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "more than 20000 values"),
        ("a: &a [*a]", "not complete"),
        ("a: *b", "not complete"),
        ("[" * 5000, "nested deeper"),
        ("{a: " * 5000, "nested deeper"),
        ("- " * 5000, "nested deeper"),
        ("a: 1\na: 2", "twice"),
        ("a: !!python/object/apply:os.system [x]", "tags"),
        ("a: !x y", "tags"),
        ("? [a]\n: b", "plain word"),
        ("a: \x00", "not YAML"),
        ("a: [1", "not YAML"),
        ("\t- x", "not YAML"),
        ("---\na\n" * 400, "documents"),
        ("x\n" * 200_000, "larger than"),
    ],
)
def test_bombs_and_broken_files_are_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_yaml(text.encode(), "f.yaml")
    assert why in str(raised.value) and str(raised.value).startswith("f.yaml")


def test_what_is_not_utf8_names_the_line() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_yaml(b"a: 1\nb: \xff\n", "f")
    assert raised.value.problems[0].line == 2


def test_depth_within_the_limit_is_fine() -> None:
    assert value("[" * MAX_DEPTH + "]" * MAX_DEPTH)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_being_refused(data: bytes) -> None:
    try:
        parse_yaml(data, "f")
    except ConfigError as error:
        assert error.problems


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@,? \n\t0", max_size=60))
def test_no_punctuation_does_more_than_being_refused(text: str) -> None:
    try:
        parse_yaml(text.encode(), "f")
    except ConfigError as error:
        assert error.problems
