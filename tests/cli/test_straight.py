"""``meshagent run`` goes a shorter way than other commands; nobody may notice but by the clock."""

import subprocess
import sys
from pathlib import Path

import pytest

from meshagent.cli.straight import root_of

MODULES = """
import sys
from meshagent.cli import straight
straight.serve = lambda paths: print(paths.root, *(name for name in ("click", "rich") if name in sys.modules))
sys.argv = ["meshagent", *sys.argv[1:]]
from meshagent.cli.entry import main
main()
"""


def meshagent(*argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "meshagent.cli.entry", *argv], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("argv", "root"),
    [
        (["run"], ""),
        (["--root", "/srv/a", "run"], "/srv/a"),
        (["run", "--root", "/srv/a"], "/srv/a"),
        (["run", "-o", "json"], None),
        (["--root=/srv/a", "run"], None),
        (["--root", "", "run"], None),
        (["--root", "--help", "run"], None),
        (["run", "run"], None),
        (["hub", "run"], None),
        ([], None),
    ],
)
def test_only_the_plain_forms_go_straight(argv: list[str], root: str | None) -> None:
    assert root_of(argv) == root


def test_both_ways_say_the_same_and_end_alike(tmp_path: Path) -> None:
    straight, usual = meshagent("--root", str(tmp_path), "run"), meshagent(f"--root={tmp_path}", "run")
    assert (straight.returncode, straight.stdout, straight.stderr) == (usual.returncode, usual.stdout, usual.stderr)
    assert straight.returncode == 3 and "not enrolled" in straight.stderr


def test_the_agent_is_started_without_the_library_of_the_command_line(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", MODULES, "--root", str(tmp_path), "run"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split() == [str(tmp_path)]
