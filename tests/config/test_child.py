import asyncio
import json
from pathlib import Path

import pytest

from meshagent.config.child import load_agent_config, read_in_child
from meshagent.config.read import decode, encode, read_here
from meshagent.config.settings import AgentConfig
from meshagent.config.tree import ConfigError, Problem
from meshagent.model.posture import Posture


def test_what_the_child_reads_is_what_would_be_read_here(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("a: [1, {b: é}]\n---\nc: 1.5\n")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    paths = [tmp_path / "good.yaml", tmp_path / "bad.yaml", tmp_path / "none.yaml"]
    here = read_here(paths)
    assert asyncio.run(read_in_child(paths)) == here
    assert decode(json.loads(json.dumps(encode(here)))) == here
    assert isinstance(here[paths[1]][0], Problem) and paths[2] not in here


def test_without_a_file_no_child_is_started(tmp_path: Path) -> None:
    assert asyncio.run(read_in_child([tmp_path / "none.yaml"], timeout=0)) == {}


def test_a_child_that_is_too_slow_makes_a_problem_of_its_files(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\n")
    (problem,) = asyncio.run(read_in_child([path], timeout=0.001))[path]
    assert isinstance(problem, Problem) and "limits" in problem.text


def test_the_daemon_reads_the_same_settings_and_mistakes_as_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("posture: strict\nlabels: {team: é}\n")
    with pytest.raises(ConfigError) as raised:
        asyncio.run(load_agent_config(path))
    assert [problem.line for problem in raised.value.problems] == [2]
    path.write_text("posture: strict\n")
    assert asyncio.run(load_agent_config(path)) == AgentConfig(posture=Posture.STRICT)
    assert asyncio.run(load_agent_config(tmp_path / "none")) == AgentConfig()
