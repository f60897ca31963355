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


def test_a_lean_agent_reads_sockets_and_digests_without_the_systems_openssl() -> None:
    """gRPC and cryptography bring a library each: a third one would be 5 MB that nobody uses."""
    code = (
        "from meshagent.runtime.memory import stay_lean; stay_lean(); import meshagent.agent.app, hashlib, sys\n"
        "from meshagent.machine import netlink, sockets\n"
        "netlink.addresses(); sockets.listeners(); netlink.our_rules()\n"
        "assert hashlib.sha256(b'').hexdigest().startswith('e3b0c442')\n"
        "assert not {'_ssl', 'ssl', '_hashlib', 'unittest', 'unittest.mock'} & "
        "{name for name, module in sys.modules.items() if module is not None}\n"
        "assert not any('libssl' in line for line in open('/proc/self/maps'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
