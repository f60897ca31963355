from pathlib import Path

import pytest

from meshagent.config.read import read_here, service_files
from meshagent.config.services import ServicesFile, check_services
from meshagent.model.service import Check, DeclaredService, ServiceProtocol

SAMPLES = Path(__file__).resolve().parents[2] / "packaging/conf/services.d"


def read(directory: Path, last_good: dict[Path, tuple[DeclaredService, ...]] | None = None) -> tuple[ServicesFile, ...]:
    return check_services(read_here(service_files(directory)), last_good)


def one(tmp_path: Path, text: str) -> ServicesFile:
    (tmp_path / "one.yaml").write_text(text)
    (file,) = read(tmp_path)
    return file


def told(file: ServicesFile) -> list[str]:
    return [f"{problem.line} {problem.path}" for problem in file.problems]


def test_the_samples_declare_the_same_service_so_the_full_one_shows_the_defaults() -> None:
    full, minimal = (check_services(read_here([SAMPLES / f"{name}.yaml"]))[0] for name in ("full", "minimal"))
    assert full.services == minimal.services == (DeclaredService("orders", 8080, 8080),)


def test_several_documents_and_every_key_are_taken(tmp_path: Path) -> None:
    file = one(
        tmp_path,
        "name: orders\nport: 80\ntarget_port: 8080\nprotocol: http\nlabels: {version: v2}\nweight: 50\npriority: 1\n"
        "site: eu/dc1\ncheck: {http: /healthz?x=1, interval: 500ms, timeout: 0.5, healthy: 2, unhealthy: 5}\n"
        "---\nname: cache\nport: 6379\nprotocol: redis\ncheck: {tcp: true, interval: 1m}\n---\n",
    )
    assert not file.problems
    orders, cache = file.services
    assert orders == DeclaredService(
        "orders",
        80,
        8080,
        ServiceProtocol.HTTP,
        (("version", "v2"),),
        Check("http", "/healthz?x=1", 0.5, 0.5, 2, 5),
        50,
        1,
        "eu/dc1",
    )
    assert cache.check == Check("tcp", "/", 60.0)


def test_a_file_with_five_mistakes_names_all_five(tmp_path: Path) -> None:
    file = one(
        tmp_path,
        "name: good\nport: 1\n---\nname: x;y\nport: 99999999999999999999999\nprotocl: http\n"
        "check: {timeout: 5y}\nlabels: {a: 1}\n",
    )
    assert told(file) == ["4 name", "5 port", "6 protocl", "7 check.timeout", "8 labels.a"]
    assert file.services == ()


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("port: 80", ["1 "]),
        ("name: a", ["1 "]),
        ("{}", ["1 ", "1 "]),
        ("name: Orders\nport: 80", ["1 name"]),
        ("name: a.b\nport: 80", ["1 name"]),
        ("name: a\nport: 15008", ["2 port"]),
        ("name: a\nport: 80\ntarget_port: 15001", ["3 target_port"]),
        ("name: a\nport: '80'", ["2 port"]),
        ("name: a\nport: true", ["2 port"]),
        ("name: a\nport: 80\nprotocol: udp", ["3 protocol"]),
        ("name: a\nport: 80\ncheck: {http: healthz}", ["3 check.http"]),
        ('name: a\nport: 80\ncheck: {http: "/x\\r\\nHost: evil"}', ["3 check.http"]),
        ("name: a\nport: 80\ncheck: {http: /a b}", ["3 check.http"]),
        ("name: a\nport: 80\ncheck: {http: /, tcp: true}", ["3 check"]),
        ("name: a\nport: 80\ncheck: {tcp: false}", ["3 check.tcp"]),
        ("name: a\nport: 80\ncheck: {exec: [rm]}", ["3 check.exec"]),
        ("name: a\nport: 80\ncheck: {interval: 0}", ["3 check.interval"]),
        ("name: a\nport: 80\ncheck: {interval: .nan}", ["3 check.interval"]),
        ("name: a\nport: 80\nweight: 0", ["3 weight"]),
        ("name: a\nport: 80\npriority: 2", ["3 priority"]),
        ("name: a\nport: 80\n---\nname: a\nport: 81", ["4 a"]),
        ("[]", ["1 "]),
    ],
)
def test_a_wrong_service_is_refused_where_it_is_wrong(tmp_path: Path, text: str, places: list[str]) -> None:
    file = one(tmp_path, text)
    assert told(file) == places and file.services == ()


def test_a_bad_file_is_refused_alone_and_its_last_good_services_stay(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nport: 1\n")
    (tmp_path / "b.yaml").write_text("name: b\nport: 2\n")
    before = {file.file: file.services for file in read(tmp_path)}
    (tmp_path / "a.yaml").write_text("name: a\nport: zero\n")
    bad, good = read(tmp_path, before)
    assert told(bad) == ["2 port"] and bad.services == before[tmp_path / "a.yaml"]
    assert good.services[0].name == "b" and not good.problems


def test_a_name_declared_in_two_files_stays_with_the_first_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("name: a\nport: 2\n")
    (tmp_path / "a.yaml").write_text("name: a\nport: 1\n")
    first, second = read(tmp_path)
    assert first.services[0].port == 1 and second.services == ()
    assert "already declared" in second.problems[0].text and str(tmp_path / "a.yaml") in second.problems[0].text


def test_hidden_files_and_editors_leftovers_do_not_count(tmp_path: Path) -> None:
    for name in (".a.yaml", "a.yaml~", "a.yaml.dpkg-old", "README"):
        (tmp_path / name).write_text("name: a\nport: 1\n")
    assert read(tmp_path) == () and service_files(tmp_path / "none") == ()
