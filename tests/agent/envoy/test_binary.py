"""Finding Envoy and the version gate, with programs that say they are one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshagent.agent.envoy import binary
from meshagent.model.errors import MeshagentError


def program(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_the_newest_of_the_cache_is_found_by_number_not_by_alphabet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MESHAGENT_ENVOY", raising=False)
    monkeypatch.setenv("MESHAGENT_CACHE", str(tmp_path))
    monkeypatch.setattr(binary, "PACKAGED", tmp_path / "none")
    with pytest.raises(MeshagentError) as caught:
        binary.find()
    assert caught.value.code == "envoy-missing"
    for version in ("1.9.0", "1.40.0", "1.39.3"):
        program(tmp_path / "envoy" / version / "envoy", "")
    assert binary.find() == tmp_path / "envoy/1.40.0/envoy"


def test_a_binary_that_was_named_is_used_or_an_error_but_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = program(tmp_path / "mine", "")
    monkeypatch.setenv("MESHAGENT_ENVOY", str(named))
    assert binary.find() == named
    assert binary.find(program(tmp_path / "configured", "")) == tmp_path / "configured"
    named.unlink()
    with pytest.raises(MeshagentError, match="mine is not a program"):
        binary.find()


def test_a_version_is_asked_once_per_file_and_an_upgraded_file_again(tmp_path: Path) -> None:
    path = program(tmp_path / "envoy", "envoy  version: a/1.39.3/Clean/RELEASE/BoringSSL")
    assert binary.examine(path).version == "1.39.3"
    replaced = program(tmp_path / "new", "envoy  version: b/1.40.0/Clean/RELEASE/BoringSSL")
    replaced.rename(path)
    assert binary.examine(path).version == "1.40.0"


def test_what_is_no_envoy_or_an_untested_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeshagentError, match="not an Envoy"):
        binary.examine(program(tmp_path / "other", "hello"))
    old = program(tmp_path / "old", "envoy  version: a/1.20.0/Clean/RELEASE/BoringSSL")
    with pytest.raises(MeshagentError, match="outside the tested range"):
        binary.examine(old)
    assert binary.examine(old, allowed="1.20.0").version == "1.20.0"


def test_the_answer_is_kept_for_the_next_agent_and_holds_for_that_file_alone(tmp_path: Path) -> None:
    path, kept = tmp_path / "envoy", tmp_path / "envoy.json"

    def write(version: str) -> None:
        path.write_text(
            f"#!/bin/sh\necho asked >> {tmp_path}/asked\necho 'envoy  version: a/{version}/Clean/RELEASE/x'\n"
        )
        path.chmod(0o755)

    def examined() -> tuple[str, int]:
        """By a process of its own, as the next agent is; and how often the program was run in all."""
        code = "import sys; from pathlib import Path; from meshagent.agent.envoy.binary import examine\n"
        code += "print(examine(Path(sys.argv[1]), remembered=Path(sys.argv[2])).version)"
        done = subprocess.run([sys.executable, "-c", code, path, kept], capture_output=True, text=True, check=True)
        return done.stdout.strip(), (tmp_path / "asked").read_text().count("asked")

    write("1.40.0")
    assert [examined(), examined()] == [("1.40.0", 1), ("1.40.0", 1)]
    when = path.stat()
    write("1.39.3")
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))  # as tools do that unpack packages
    assert [examined(), examined()] == [("1.39.3", 2), ("1.39.3", 2)]
    kept.write_text("torn")
    assert examined() == ("1.39.3", 3)
