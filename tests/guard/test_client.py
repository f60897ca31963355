"""The client's own behaviour; the guard's is in test_loop.py and test_perform.py."""

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshagent.guard import wire
from meshagent.guard.client import GuardClient, GuardRefusedError, GuardUnreachableError, command


@contextlib.contextmanager
def listening(tmp_path: Path, *answers: bytes) -> Iterator[GuardClient]:
    """Something on a socket that answers each line with the next of ``answers``, then closes."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                for line, answer in zip(lines, answers, strict=False):
                    assert line.endswith(b"\n")
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        client = GuardClient(path, timeout=0.3)
        yield client
        client.close()
        thread.join(1)


def test_no_socket_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(GuardUnreachableError) as error:
        GuardClient(tmp_path / "none").state()
    assert "No such file" in error.value.message and "meshagent-guard" in error.value.hint


def test_a_socket_nobody_serves_is_unreachable(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    with pytest.raises(GuardUnreachableError, match="refused"):
        GuardClient(tmp_path / "s").state()


def test_a_guard_that_hangs_is_unreachable_after_the_timeout(tmp_path: Path) -> None:
    with listening(tmp_path, wire.answer(1, {}), b"") as client, pytest.raises(GuardUnreachableError):
        client.state()


def test_what_the_guard_refuses_comes_with_its_code_and_hint(tmp_path: Path) -> None:
    refusal = wire.failure(2, wire.RequestError("rolled-back", "no", "acknowledge it"))
    with listening(tmp_path, wire.answer(1, {}), refusal) as client, pytest.raises(GuardRefusedError) as error:
        client.state()
    assert (error.value.code, error.value.hint) == ("rolled-back", "acknowledge it")


def test_another_version_is_refused_not_guessed_at(tmp_path: Path) -> None:
    refusal = wire.failure(1, wire.RequestError("wrong-version", "the guard speaks version 9", "restart it"))
    with listening(tmp_path, refusal) as client, pytest.raises(GuardRefusedError, match="version 9"):
        client.state()


def test_the_command_names_the_root() -> None:
    assert command(Path("/r")) == [sys.executable, "-m", "meshagent.guard", "--root", "/r"]
