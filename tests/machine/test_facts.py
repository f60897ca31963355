"""Facts about this machine, and about file contents handed in."""

import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from meshagent.lab import Lab
from meshagent.machine import facts


def test_this_machine_has_a_kernel_a_boot_and_a_user() -> None:
    found = facts.gather()
    assert found.kernel == os.uname().release
    assert len(found.boot_id) == 36
    assert found.uid == os.geteuid()


def test_nameservers_are_those_the_c_library_uses() -> None:
    text = "# nameserver 9.9.9.9\nsearch a\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver 10.0.0.1\n"
    text += "nameserver nonsense\nnameserver\nnameserver ::1\nnameserver 10.0.0.4\n"
    assert facts.nameservers(text) == (ip_address("10.0.0.1"), ip_address("fe80::1"), ip_address("::1"))


def test_what_can_not_be_read_is_empty(tmp_path: Path) -> None:
    found = facts.gather(etc=tmp_path, proc=tmp_path)
    assert (found.distro, found.nameservers, found.boot_id, found.ipv6) == ("unknown Linux", (), "", False)
    assert not found.systemd


def test_distro_is_the_pretty_name(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text('NAME=x\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    assert facts.gather(etc=tmp_path).distro == "Debian GNU/Linux 12 (bookworm)"


@pytest.mark.root
def test_a_namespace_host_has_its_own_resolver_and_no_systemd(lab: Lab) -> None:
    code = "from meshagent.machine.facts import gather; f = gather(); print(f.init, *f.nameservers)"
    assert lab.host("web").python(code).split() == ["none", *lab.resolver.host.addresses]
