import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import meshagent.agent
from meshagent.agent.health.conditions import CONDITIONS

AGENT = Path(meshagent.agent.__file__).parent


def test_every_condition_has_a_stable_code_a_title_and_a_remedy_of_one_line() -> None:
    for code, spec in CONDITIONS.items():
        assert code == spec.code and re.fullmatch(r"[a-z]+(-[a-z]+)*", code)
        for text in (spec.title, spec.remedy):
            assert text and text.isprintable() and not text.endswith(".")
        assert 0 <= spec.delay <= 120


def test_causes_are_conditions_themselves_and_no_condition_hides_itself() -> None:
    def causes(code: str) -> set[str]:
        direct = set(CONDITIONS[code].depends_on)
        return direct.union(*(causes(cause) for cause in direct)) if direct else direct

    for code in CONDITIONS:
        assert code not in causes(code)


def test_every_code_that_a_part_of_the_agent_reports_is_in_the_table() -> None:
    unknown = {
        f"{path.relative_to(AGENT)}: {code}"
        for path in AGENT.rglob("*.py")
        for code in _reported(ast.parse(path.read_text()))
        if code not in CONDITIONS
    }
    assert unknown == set()


def _reported(module: ast.Module) -> Iterator[str]:
    """First arguments of ``….conditions.set(…)`` and ``.clear(…)``: literals, or constants of the same module."""
    constants = {
        target.id: node.value.value
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("set", "clear"):
            sink = ast.unparse(node.func.value)
            if sink.rpartition(".")[2] in ("conditions", "_conditions", "tracker", "_tracker") and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    yield str(first.value)
                elif isinstance(first, ast.Name) and first.id in constants:
                    yield str(constants[first.id])


_DOCUMENT = Path("docs/conditions.md")
_BEGIN, _END = "<!-- conditions of a host: begin -->\n", "<!-- conditions of a host: end -->\n"


def _table() -> str:
    rows = [f"| `{s.code}` | {s.severity} | {s.title} | {s.remedy} |\n" for s in CONDITIONS.values()]
    return "| code | severity | what | what to do |\n|---|---|---|---|\n" + "".join(rows)


def test_the_documentation_holds_every_condition_as_it_is_shown() -> None:
    """MESHAGENT_GOLDEN=write writes the table anew."""
    text = _DOCUMENT.read_text(encoding="utf-8")
    head, _, rest = text.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    wanted = head + _BEGIN + _table() + _END + tail
    if os.environ.get("MESHAGENT_GOLDEN") == "write":
        _DOCUMENT.write_text(wanted, encoding="utf-8")
    assert _DOCUMENT.read_text(encoding="utf-8") == wanted
