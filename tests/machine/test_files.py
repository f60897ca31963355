"""Files are whole or absent, and errors of the disk come with a remedy."""

import os
import threading
from pathlib import Path

import pytest

from meshagent.lab import Lab
from meshagent.machine import files
from meshagent.model.errors import MeshagentError


def test_a_write_replaces_the_whole_file_with_mode_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("much longer than what follows")
    files.write_atomic(path, "new", mode=0o640, uid=os.getuid(), gid=os.getgid())
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o7777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_file_that_need_not_last_is_whole_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_text("much longer than what follows")
    files.write_atomic(path, "new", mode=0o640, durable=False)
    assert (path.read_text(), path.stat().st_mode & 0o7777) == ("new", 0o640)
    files.remove_file(path, durable=False)
    files.remove_file(path, durable=False)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_used_again(tmp_path: Path) -> None:
    (tmp_path / ".state.new").write_text("half of somethi")
    files.write_atomic(tmp_path / "state", b"whole")
    assert (tmp_path / "state").read_bytes() == b"whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_link_planted_in_place_of_the_new_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".state.new").symlink_to(tmp_path / "victim")
    with pytest.raises(MeshagentError):
        files.write_atomic(tmp_path / "state", b"x")
    assert (tmp_path / "victim").read_text() == "precious"


def test_many_writers_at_once_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "state"
    contents = [bytes([65 + number]) * 50_000 for number in range(6)]

    def write(content: bytes) -> None:
        for _ in range(10):
            files.write_atomic(path, content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert files.read_bounded(path) in (None, *contents)
    for writer in writers:
        writer.join()
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_reading_is_bounded_and_absence_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 11)
    assert files.read_bounded(tmp_path / "none") is None
    assert files.read_bounded(tmp_path / "big", 11) == b"x" * 11
    with pytest.raises(MeshagentError, match="larger than 10 bytes"):
        files.read_bounded(tmp_path / "big", 10)


def test_a_directory_gets_exactly_its_mode_and_a_link_is_refused(tmp_path: Path) -> None:
    files.make_dir(tmp_path / "a/b", mode=0o700)
    files.make_dir(tmp_path / "a/b", mode=0o750)
    assert (tmp_path / "a/b").stat().st_mode & 0o7777 == 0o750
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(MeshagentError):
        files.make_dir(tmp_path / "link")


def test_a_wiped_secret_is_gone_also_for_who_holds_it_open(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"secret")
    with path.open("rb") as held:
        files.wipe(path)
        assert held.read() == b"\0" * 6
    assert not path.exists()
    files.wipe(path)


def test_a_tree_goes_with_its_secrets_overwritten(tmp_path: Path) -> None:
    key = tmp_path / "state/deep/key"
    key.parent.mkdir(parents=True)
    key.write_bytes(b"secret")
    (tmp_path / "state/link").symlink_to("nowhere")
    with key.open("rb") as held:
        files.remove_tree(tmp_path / "state", wiped=True)
        assert held.read() == b"\0" * 6
    files.remove_tree(tmp_path / "state")
    files.remove_file(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_full_and_read_only_disks_are_named_and_leave_the_old_file(lab: Lab) -> None:
    small = lab.host("web")
    code = (
        "import sys; from meshagent.machine import files; from meshagent.model.errors import MeshagentError\n"
        "files.write_atomic(sys.argv[1], b'old')\n"
        "import subprocess; subprocess.run(sys.argv[3:], check=True)\n"
        "try: files.write_atomic(sys.argv[1], b'x' * int(sys.argv[2]))\n"
        "except MeshagentError as error: print(error.code, error.hint)\n"
        "print(open(sys.argv[1]).read())\n"
    )
    small.run(["mkdir", "/run/disk"])
    small.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/run/disk"])
    full = small.python(code, "/run/disk/state", "200000", "true").splitlines()
    assert full == ["disk-full free some space on the file system of /run/disk (df -h /run/disk)", "old"]
    remount = ["mount", "-o", "remount,ro", "/run/disk"]
    read_only = small.python(code, "/run/disk/state", "1", *remount).splitlines()
    assert read_only[0].startswith("disk-read-only /run/disk is mounted read-only")
    assert read_only[1] == "old"


def test_a_tree_is_removed_whole_while_somebody_removes_files_of_it_too(tmp_path: Path) -> None:
    """A guard that ends removes its socket just when ``leave`` removes the directory."""
    for number in range(5):
        tree = tmp_path / str(number)
        tree.mkdir()
        names = [tree / str(name) for name in range(400)]
        for name in names:
            name.touch()
        other = threading.Thread(target=lambda files=names: [file.unlink(missing_ok=True) for file in files])
        other.start()
        files.remove_tree(tree)
        other.join()
        assert not tree.exists()
