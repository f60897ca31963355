"""Sockets appear complete, stale ones are replaced, and nobody else's file is removed."""

import os
import socket
from pathlib import Path

import pytest

from meshagent.model.errors import MeshagentError
from meshagent.transport.unix import Access, answers, inode, listen, placed, remove


def test_a_socket_never_exists_under_its_name_with_the_wrong_mode(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with placed(path, Access(0o660, gid=os.getgid())) as temporary, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(temporary))
        assert temporary.stat().st_mode & 0o177 == 0
        assert not path.exists()
        kept = listener.dup()
    assert path.stat().st_mode & 0o777 == 0o660
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.sock"]
    kept.close()


def test_a_failure_leaves_nothing_and_the_umask_as_it_was(tmp_path: Path) -> None:
    before = os.umask(0o022)
    with pytest.raises(OSError, match="nothing bound"), placed(tmp_path / "s.sock", Access()):
        raise OSError("nothing bound")
    assert os.umask(before) == 0o022
    assert list(tmp_path.iterdir()) == []


def test_a_live_socket_answers_and_is_refused_a_dead_one_is_neither(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    assert not answers(path)
    first = listen(path, Access())
    assert answers(path)
    with pytest.raises(MeshagentError) as caught:
        listen(path, Access())
    assert caught.value.code == "already-running"
    first.close()
    assert not answers(path)
    listen(path, Access()).close()


def test_a_plain_file_in_the_way_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "s.sock").write_text("left over")
    with listen(tmp_path / "s.sock", Access()):
        assert answers(tmp_path / "s.sock")


def test_only_our_own_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    old = listen(path, Access())
    ours = inode(path)
    old.close()
    with listen(path, Access()):
        remove(path, ours)
        assert path.exists()
        remove(path, inode(path))
        assert not path.exists()
    remove(path, None)
