import json
import subprocess
import sys
from pathlib import Path

import pytest

from meshagent.config.read import read_tree
from meshagent.config.tree import ConfigError


def loaded_by(code: str) -> list[str]:
    heavy = ("ruamel", "pydantic", "grpc", "structlog", "asyncio")
    code = f"import sys; {code}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1].replace("'", '"')))


def test_checking_and_editing_load_nothing_heavy_until_a_file_is_parsed() -> None:
    assert loaded_by("import meshagent.config.load, meshagent.config.services") == []


def test_the_child_loads_the_parser_and_nothing_of_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\n")
    read = f"import pathlib, meshagent.config.read as r; r.read_here([pathlib.Path({str(tmp_path / 'a.yaml')!r})])"
    assert loaded_by(read) == ["ruamel"]


def test_an_unreadable_path_is_a_problem_and_a_missing_one_is_not(tmp_path: Path) -> None:
    assert read_tree(tmp_path / "none.yaml") is None
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="can't be read"):
        read_tree(tmp_path / "loop")
