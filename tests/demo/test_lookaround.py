"""``--keep`` leaves a mesh that lives without the demo, and every command it prints works."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from meshagent.demo.lookaround import COMMANDS
from meshagent.lab import sweep
from tests.demo.demos import processes, start

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("alone"),
    pytest.mark.xdist_group("demo"),
    pytest.mark.timeout(240),
]


def test_a_kept_mesh_outlives_the_demo_all_ten_commands_work_and_the_next_run_removes_it(envoy: Path) -> None:
    demo = start("--keep")
    out, err = demo.communicate(timeout=200)
    assert demo.returncode == 0, out + err
    lines = [line.strip() for line in out.splitlines() if line.startswith("  /run/ma-")]
    assert len(lines) == len(COMMANDS) == 10
    lab = Path(lines[0]).parts[2]
    try:
        status = subprocess.run(
            [lines[0].split()[0], "cache", "meshagent", "status", "-o", "json"], capture_output=True
        )
        assert json.loads(status.stdout)["proxy"]["restarts"] == 0, "the end of the demo took Envoy along"
        for line in lines:
            done = subprocess.run(shlex.split(line), capture_output=True, text=True, timeout=60)
            assert done.returncode == 0 and done.stdout.strip(), f"{line}: {done.stdout}{done.stderr}"
        assert lab not in sweep() and processes(lab), "an ordinary lab must not remove a kept one"
    finally:
        assert lab in sweep(kept=True)
    assert not Path("/run", lab).exists() and processes(lab) == []
