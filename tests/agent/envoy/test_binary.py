"""Finding Envoy and the version gate, with programs that say they are one."""

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
