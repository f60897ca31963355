"""Settings as the kernel has them, of this network namespace."""

from pathlib import Path

import pytest

from meshagent.lab import Lab
from meshagent.machine import sysctls


def test_the_largest_of_all_interfaces_is_in_force_and_default_does_not_count(tmp_path: Path) -> None:
    for name, value in (("all", 0), ("default", 2), ("eth0", 1), ("lo", 0)):
        path = tmp_path / "net/ipv4/conf" / name / "rp_filter"
        path.parent.mkdir(parents=True)
        path.write_text(f"{value}\n")
    assert sysctls.read(proc=tmp_path) == {"net.ipv4.conf.*.rp_filter": 1}
    assert sysctls.conntrack(tmp_path) is None


def test_nonsense_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "net/ipv4/ip_forward"
    path.parent.mkdir(parents=True)
    path.write_text("what?\n")
    assert sysctls.read(proc=tmp_path) == {}


@pytest.mark.root
def test_the_kernel_of_a_host_is_read_in_its_own_namespace(lab: Lab) -> None:
    host = lab.host("web")
    host.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.eth0.rp_filter=2"])
    found = host.inside(sysctls.read)
    assert found["net.ipv4.ip_forward"] == 1 and found["net.ipv4.conf.*.rp_filter"] == 2
    count, most = host.inside(sysctls.conntrack) or (-1, -1)
    assert 0 <= count < most
