"""A kernel without nftables: user-mode Linux (Debian's package) with this machine's files, read-only.

Its nf_tables knows no table of family inet, so ``auto`` has to pick legacy iptables by itself; and it has no conntrack
zones. Inside, the core of the case table runs in lab namespaces as everywhere else.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.long, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
MODULES = Path("/usr/lib/uml/modules")
CORE = (
    "tests/agent/capture/test_chains_outbound.py",
    "tests/agent/capture/test_chains_inbound.py",
    "tests/agent/capture/test_chains_dns.py",
    "tests/agent/capture/test_chains_arriving.py",
    "tests/guard/test_legacy.py",
)
ROWS = (
    "a_virtual_address_reaches_the_proxy",
    "undeclared_port_udp_and_icmp",
    "the_proxy_and_the_agent_go_direct",
    "our_own_ports_are_refused",
    "while_the_proxy_is_dead_literals",
    "permissive_leaves_plain_callers_alone",
    "strict_refuses_new_plain_callers",
    "queries_to_the_nameserver_reach",
    "rules_come_and_go",
    "a_connection_from_outside_reaches",
    "rules_that_others_put_before_ours",
)

_INIT = """#!/bin/bash
export PATH={venv}:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/run PYTHONDONTWRITEBYTECODE=1
export MESHAGENT_ENVOY={envoy} MESHAGENT_TEST_LONG=1 MESHAGENT_LAB_PATIENCE=20
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmpfs /run
mkdir -p /dev/shm; mount -t tmpfs tmpfs /dev/shm
{python} {root}/tests/boot/load_modules.py {modules}
ip link set lo up
cat /usr/sbin/xtables-*-multi /usr/lib/*/xtables/*.so >/dev/null
mkdir /run/repo; mount --bind {root} /run/repo
mount -t tmpfs tmpfs /tmp; mkdir -p {root}; mount --bind /run/repo {root} 2>/dev/null
cd {root}
{python} -c 'from meshagent.agent.capture.usable import usable_backends; print("usable", usable_backends())'
{python} -c 'from meshagent.agent.capture.usable import usable_zones; print("zones", usable_zones(nft=False))'
{python} -m pytest -q --color=no -p no:cacheprovider -o timeout=600 {core} -k '{rows}'
echo "ended $?"
{python} -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)'
"""


def test_on_a_kernel_without_nftables_capture_takes_iptables_by_itself_and_the_case_table_holds(tmp_path: Path) -> None:
    (modules,) = MODULES.iterdir()
    init = tmp_path / "init"
    init.write_text(
        _INIT.format(
            venv=Path(sys.executable).parent,
            envoy=os.environ.get("MESHAGENT_ENVOY", ""),
            python=sys.executable,
            root=ROOT,
            modules=modules,
            core=" ".join(CORE),
            rows=f"(iptables or rules_) and ({' or '.join(ROWS)})",
        )
    )
    init.chmod(0o755)
    said = _boot(init, tmp_path)
    assert "usable (False, True)" in said and "zones False" in said, said[-3000:]
    passed = re.search(r"^(\d+) passed", said, re.M)
    assert "ended 0" in said and passed and int(passed[1]) >= 2 * len(ROWS) - 2, said[-3000:]


def _boot(init: Path, tmp_path: Path) -> str:
    """Start it in a network namespace of its own; returns its console once it has halted.

    On one core: its kernel and its programs are processes that wait for each other at every system call, and to wake
    another core takes many times as long. Measured on a busy machine with two: python starts in 0.15 s instead of 1.3,
    iptables-legacy-save takes 0.02 s instead of 0.2 to 2 (and the guard gives a restore 4 s, in real time).
    """
    console = tmp_path / "console"
    core = str(max(os.sched_getaffinity(0)))
    argv = ["taskset", "--cpu-list", core, "unshare", "--net", "linux.uml", f"init={init}", "ro", "rootfstype=hostfs"]
    argv += ["rootflags=/", "mem=1024M", "con=null", "con0=null,fd:1", "con1=null", "quiet", "loglevel=1"]
    argv += [f"uml_dir={tmp_path}"]
    with console.open("w") as out:
        machine = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "TMPDIR": "/dev/shm"},
        )
        try:
            machine.wait(1700)
        finally:
            with contextlib.suppress(ProcessLookupError):  # its helpers, too
                os.killpg(machine.pid, signal.SIGKILL)
            machine.wait()
    return console.read_text(errors="replace").replace("\r", "")
