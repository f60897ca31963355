"""What is written reads back the same."""

from hypothesis import given, settings
from hypothesis import strategies as st

from meshagent.hub.resources.yamltext import read_documents
from meshagent.hub.resources.yamlwrite import to_yaml

printable = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | printable
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(printable, v, max_size=3), max_leaves=12
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(printable, values, min_size=1, max_size=4))
def test_any_resource_reads_back_as_it_was(value: dict[str, object]) -> None:
    (document,) = read_documents(to_yaml(value))
    assert document.value == value


def test_it_looks_as_one_would_write_it() -> None:
    text = to_yaml({"kind": "A", "spec": {"hosts": ["a.b", "1"], "ports": [{"number": 80, "name": "on"}], "x": {}}})
    assert (
        text
        == 'kind: A\nspec:\n  hosts:\n    - a.b\n    - "1"\n  ports:\n    - number: 80\n      name: "on"\n  x: {}\n'
    )
