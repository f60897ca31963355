"""Units as groups in a real tree: which are found, and how soon one that starts or stops is noticed."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from meshagent.machine import cgroups
from tests.fakes.units import Units, units

pytestmark = pytest.mark.root


@pytest.fixture
def made() -> Iterator[Units]:
    with units() as found:
        yield found


def test_a_running_unit_is_found_with_what_a_rule_needs(made: Units) -> None:
    web = made.start("web.service")
    (found,) = cgroups.find([made.name("web.service"), "never.service"])
    assert found.unit == made.name("web.service")
    assert Path("/sys/fs/cgroup") / found.path == web
    assert (found.level, found.id) == (2, web.stat().st_ino)
    (whole,) = cgroups.find([made.slice])
    assert whole.level == 1


def test_what_runs_inside_a_unit_is_not_taken_for_a_unit_of_this_host(made: Units) -> None:
    made.start("docker.service", below=f"system.slice/{made.name('web.service')}")
    assert cgroups.find([made.name("web.service")]) == ()


def test_a_unit_that_starts_again_is_another_group(made: Units) -> None:
    made.start("web.service")
    (before,) = cgroups.find([made.name("web.service")])
    made.stop("web.service")
    assert cgroups.find([made.name("web.service")]) == ()
    made.start("web.service")
    (after,) = cgroups.find([made.name("web.service")])
    assert after.path == before.path and after.id != before.id


def test_starting_and_stopping_is_noticed_also_in_a_slice_that_is_new(made: Units) -> None:
    async def story() -> None:
        with closing(cgroups.Watch()) as watch:
            for change in (lambda: made.start("web.service"), lambda: made.start("db.service")):
                change()
                async with asyncio.timeout(30):
                    await watch.changed()
            made.stop("web.service")
            async with asyncio.timeout(30):
                await watch.changed()

    asyncio.run(story())


def test_a_machine_without_a_v2_tree_has_no_units(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    for text, tree in (
        ("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n", None),
        ("cgroup2 /run/other cgroup2 rw 0 0\n", None),
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", Path("/sys/fs/cgroup")),
        ("x\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n", Path("/sys/fs/cgroup/unified")),
    ):
        mounts.write_text(text)
        assert cgroups.tree(mounts) == tree
    assert cgroups.tree(tmp_path / "none") is None
    assert cgroups.find(["web.service"], tmp_path / "none") == ()
