"""Other kernels: those of Debian 11, 12 and 13, booted under QEMU with this machine's files (emulated.py).

Emulated, a test takes some ten times as long, so each kernel runs a choice: what the guard finds it can do, every
approved rule set, and the rows of the case table that rest on what kernels do differently.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.boot import emulated
from tests.lab import downloads
from tests.lab.downloads import Download

pytestmark = [pytest.mark.root, pytest.mark.long, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[2]
FILES = (
    "tests/agent/capture/test_nft.py",
    *(f"tests/agent/capture/test_chains_{what}.py" for what in ("outbound", "inbound", "dns", "connections")),
    *(f"tests/agent/capture/test_chains_{what}.py" for what in ("arriving", "client_address", "units")),
    *(f"tests/guard/test_{what}.py" for what in ("perform", "tables", "rulewatch", "legacy")),
)
#: Each as an expression of pytest's -k, with how many tests it finds.
EVERYWHERE = {
    "the_kernel_accepts": 18,
    "a_virtual_address_reaches": 4,
    "undeclared_port_udp_and_icmp and nft": 2,
    "the_proxy_and_the_agent_go_direct and nft": 2,
    "while_the_proxy_is_dead_literals and nft and ipv4": 1,
    "permissive_leaves_plain_callers and nft": 2,
    "strict_refuses_new_plain_callers and nft": 2,
    "queries_to_the_nameserver and nft": 2,
    "open_connections_survive_capture_on and ipv4": 2,
    "captured_connections_survive_changes and nft and ipv4": 1,
    "a_connection_from_outside_reaches and nft and ipv4": 2,
    "the_application_sees_the_caller and ipv4 and nft": 2,
    "an_unowned_table_is_put_back": 3,
    "both_tables_are_put_back": 1,
    "a_change_of_our_table_names": 1,
}
OWNERLESS = {"changing_the_policy and ownerless": 1, "takes_over_what_policy_closed_left and ownerless": 1}
OWNING = {
    "changing_the_policy and owning": 1,
    "takes_over_what_policy_closed_left and owning": 1,
    "a_killed_guard_with_policy_open": 1,
    "nobody_else_can_flush": 1,
    "the_hold_goes": 1,
    "stalls_over_flushes and owning": 1,
}
KEEPING = {
    "changing_the_policy and guarded": 1,
    "a_kept_table_is_out_of_everybodys_reach": 2,
    "leaves_the_kept_table": 2,
    "a_kept_table_is_made": 1,
}
UNITS = {"only_the_units_named and ipv4": 1}


@dataclass(frozen=True)
class Expected:
    """What the guard finds on a kernel (guard/tables.py), and which tests go with that."""

    download: Download
    release: str
    own: bool
    keep: bool
    rows: dict[str, int]


KERNELS = (
    Expected(downloads.KERNEL_5_10, "5.10", False, False, OWNERLESS),
    Expected(downloads.KERNEL_6_1, "6.1", True, False, OWNING | UNITS),
    Expected(downloads.KERNEL_6_12, "6.12", True, True, KEEPING | UNITS),
)

#: What the product itself finds out, then the tests; the last line says that pytest came to its end.
_COMMANDS = """\
export PATH={venv}:$PATH
python -c '
from meshagent.agent.capture.usable import usable_backends
from meshagent.guard.libnftables import Context
from meshagent.guard.tables import Tables
tables = Tables(Context())
tables.probe()
print("usable", usable_backends())
print("tables", tables.owner_supported, tables.keep_supported)
'
uname --kernel-release
for golden in tests/golden/nft/*.nft; do  # those that name control groups need the groups
  grep -q cgroupv2 $golden || {{ nft -f $golden && echo "loaded $golden"; nft flush ruleset; }}
done
python -m pytest -q --color=no -p no:cacheprovider -o timeout=900 --durations=15 {files} -k '{rows}'
echo "ended $?"
"""


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.release)
def test_on_another_kernel_the_guard_takes_the_best_table_and_the_case_table_holds(
    kernel: Expected, tmp_path: Path
) -> None:
    rows = EVERYWHERE | kernel.rows
    chosen = " or ".join(f"({row})" for row in rows)
    commands = _COMMANDS.format(venv=Path(sys.executable).parent, files=" ".join(FILES), rows=chosen)
    said = emulated.run(emulated.unpacked(kernel.download), commands, ROOT, sys.executable, tmp_path, 2300)
    assert f"\n{kernel.release}." in said and "usable (True, True)" in said, said[-3000:]
    assert f"tables {kernel.own} {kernel.keep}\n" in said, said[-3000:]
    goldens = [path for path in (ROOT / "tests/golden/nft").glob("*.nft") if "cgroupv2" not in path.read_text()]
    assert said.count("\nloaded ") == len(goldens), said[-3000:]
    passed = re.search(r"^(\d+) passed, \d+ deselected in", said, re.M)  # none failed, none was left out
    assert "\nended 0\n" in said and passed and int(passed[1]) == sum(rows.values()), said[-3000:]
