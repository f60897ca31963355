"""A daemon does not carry what only commands for people use."""

import subprocess
import sys


def test_a_lean_daemon_has_no_rich_and_a_working_log() -> None:
    code = (
        "from meshagent.runtime.memory import stay_lean; stay_lean(); import structlog, sys; "
        "structlog.get_logger().info('it works'); assert not [m for m in sys.modules if m.startswith('rich.')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "it works" in done.stdout
