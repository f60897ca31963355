from pathlib import Path
from typing import Any

import pytest

from meshagent.config.edit import add_service, remove_service, render_service, set_posture, write_service
from meshagent.config.load import read_agent_config
from meshagent.config.read import read_here, service_files
from meshagent.config.services import check_services
from meshagent.config.tree import ConfigError
from meshagent.model.errors import UsageError
from meshagent.model.paths import Paths
from meshagent.model.posture import Posture
from meshagent.model.service import Check, DeclaredService, ServiceProtocol

SAMPLES = Path(__file__).resolve().parents[2] / "packaging/conf"


def test_only_the_postures_own_word_changes_in_the_full_sample(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    before = (SAMPLES / "agent.full.yaml").read_text()
    path.write_text(before)
    path.chmod(0o640)
    assert set_posture(path, Posture.STRICT).posture is Posture.STRICT
    assert path.read_text() == before.replace("posture: permissive\n", "posture: strict\n")
    assert path.stat().st_mode & 0o777 == 0o640
    set_posture(path, Posture.PERMISSIVE)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "posture: strict\n"),
        ("# mine\n", "# mine\nposture: strict\n"),
        ("# mine", "# mine\nposture: strict\n"),
        ("# top\nname: a # n\n# end\n", "# top\nposture: strict\nname: a # n\n# end\n"),
        ("---\nname: a\n", "---\nposture: strict\nname: a\n"),
        ("posture:\nname: a\n", "posture: strict\nname: a\n"),
        ("posture: 'observe' # why\n", "posture: strict # why\n"),
        ('{posture: "observe", name: a}\n', "{posture: strict, name: a}\n"),
        ("posture: strict # as it is\n", "posture: strict # as it is\n"),
        ("name: a\r\nposture: observe\r\n", "name: a\r\nposture: strict\r\n"),
    ],
)
def test_a_posture_finds_its_place_in_any_file(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_bytes(before.encode())
    set_posture(path, Posture.STRICT)
    assert path.read_bytes() == after.encode()
    assert read_agent_config(path).posture is Posture.STRICT


def test_a_missing_file_and_its_directory_are_made(tmp_path: Path) -> None:
    path = tmp_path / "etc/meshagent/agent.yaml"
    set_posture(path, Posture.OUTBOUND)
    assert path.read_text() == "posture: outbound\n"
    assert set_posture(tmp_path / "other.yaml", Posture.PERMISSIVE).posture is Posture.PERMISSIVE
    assert not (tmp_path / "other.yaml").exists()


@pytest.mark.parametrize("text", ["nam: a\n", "posture: [\n", "{name: a}\n", "name: a\n---\nname: b\n"])
def test_a_file_that_is_invalid_or_cannot_be_edited_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    with pytest.raises(UsageError):
        set_posture(path, Posture.STRICT)
    assert path.read_text() == text


FULL = DeclaredService(
    "orders",
    80,
    8080,
    ServiceProtocol.HTTP,
    (("a", "1"), ("b", "true")),
    Check("http", "/x?a='\"{}:#", 0.5, 0.25, 2, 4),
    7,
    1,
    "eu/dc1",
)


def declared(directory: Path) -> list[DeclaredService]:
    files = check_services(read_here(service_files(directory)))
    assert not any(file.problems for file in files)
    return [service for file in files for service in file.services]


def test_an_added_service_reads_back_as_it_is_and_goes_without_a_trace(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    directory = paths.services_dir
    write_service(directory, FULL)
    assert add_service(paths, "cache", port=6379) == directory / "cache.yaml"
    assert declared(directory) == [DeclaredService("cache", 6379, 6379), FULL]
    assert render_service(DeclaredService("cache", 6379, 6379)) == "name: cache\nport: 6379\n"
    with pytest.raises(UsageError, match="already declared"):
        write_service(directory, FULL)
    remove_service(paths, "orders")
    remove_service(paths, "cache")
    assert list(directory.iterdir()) == []
    with pytest.raises(UsageError, match="no service"):
        remove_service(paths, "cache")


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("a", "---\n# b's\nname: b\nport: 2\n---\nname: c # last\nport: 3\n"),
        ("b", "# a's\nname: a\nport: 1\n---\nname: c # last\nport: 3\n"),
        ("c", "# a's\nname: a\nport: 1\n---\n# b's\nname: b\nport: 2\n"),
    ],
)
def test_one_document_is_cut_out_and_the_others_keep_their_comments(tmp_path: Path, name: str, left: str) -> None:
    paths = Paths(tmp_path)
    paths.services_dir.mkdir(parents=True)
    path = paths.services_dir / "all.yaml"
    path.write_text("# a's\nname: a\nport: 1\n---\n# b's\nname: b\nport: 2\n---\nname: c # last\nport: 3\n")
    assert remove_service(paths, name) == path
    assert path.read_text() == left
    assert [service.name for service in declared(paths.services_dir)] == sorted({"a", "b", "c"} - {name})


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("cache", {"port": 15008}),
        ("Cache", {"port": 80}),
        ("../../x", {"port": 80}),
        ("a\nport: 1", {"port": 80}),
        ("cache", {"port": 0}),
        ("cache", {"port": 80, "target_port": 70000}),
        ("cache", {"port": 80, "protocol": "udp"}),
        ("cache", {"port": 80, "check": "exec:rm"}),
        ("cache", {"port": 80, "check": "http:healthz"}),
        ("cache", {"port": 80, "check": "tcp:1"}),
    ],
)
def test_what_no_file_may_declare_is_refused_and_nothing_is_written(
    tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as raised:
        add_service(Paths(tmp_path), name, **more)
    assert "\n" not in str(raised.value) and list(tmp_path.iterdir()) == []


def test_a_check_is_added_as_it_was_typed(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    add_service(paths, "web", port=80, target_port=8080, protocol="http", check="http:/healthz")
    (web,) = declared(paths.services_dir)
    assert (web.target_port, web.protocol, web.check) == (8080, ServiceProtocol.HTTP, Check("http", "/healthz"))
