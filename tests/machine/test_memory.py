"""Memory of the machine and of the cgroup, from trees as the kernel shows them."""

from pathlib import Path

from meshagent.machine import memory


def tree(top: Path, cgroup: str, mounts: str, limits: dict[str, str]) -> Path:
    proc = top / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(cgroup)
    (proc / "self/mountinfo").write_text(mounts.replace("TOP", str(top)))
    for name, limit in limits.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(f"{limit}\n")
    return proc


V2 = "30 24 0:26 / TOP/cg rw - cgroup2 cgroup2 rw\n"
V1 = "33 24 0:30 / TOP/cg/memory rw - cgroup cgroup rw,memory\n31 24 0:28 / TOP/cg/cpu rw - cgroup cgroup rw,cpu\n"


def test_the_tightest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    limits = {
        "cg/a/b/memory.max": "max",
        "cg/a/memory.max": str(300 << 20),
        "cg/memory.max": str(900 << 20),
    }
    assert memory.cgroup_limit(tree(tmp_path, "0::/a/b\n", V2, limits)) == 300 << 20


def test_a_cgroup_without_a_limit_has_none(tmp_path: Path) -> None:
    limits = {"cg/a/memory.max": "max"}
    assert memory.cgroup_limit(tree(tmp_path, "0::/a\n", V2, limits)) is None


def test_version_1_is_read_where_its_memory_controller_is_mounted(tmp_path: Path) -> None:
    limits = {
        "cg/memory/x/memory.limit_in_bytes": str(64 << 20),
        "cg/memory/memory.limit_in_bytes": str(0x7FFFFFFFFFFFF000),
        "cg/cpu/y/memory.limit_in_bytes": "1",
    }
    found = tree(tmp_path, "3:memory:/x\n2:cpu:/y\n0::/\n", V1, limits)
    assert memory.cgroup_limit(found) == 64 << 20


def test_inside_a_container_the_mount_begins_at_its_own_cgroup(tmp_path: Path) -> None:
    mounts = "30 24 0:26 /docker/abc TOP/cg rw - cgroup2 cgroup2 rw\n"
    found = tree(tmp_path, "0::/docker/abc/inner\n", mounts, {"cg/memory.max": str(128 << 20)})
    assert memory.cgroup_limit(found) == 128 << 20


def test_this_machine_has_memory_and_its_cgroup_can_be_asked() -> None:
    assert memory.host_total() > 64 << 20
    limit = memory.cgroup_limit()
    assert limit is None or limit > 0
