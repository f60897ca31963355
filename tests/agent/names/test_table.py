from ipaddress import ip_address

import pytest

from meshagent.agent.names.packet import encode_name
from meshagent.agent.names.table import MAX_ADDRESSES, Absent, Addresses, NameIndex, build_index
from meshagent.model.names import NameEntry, NameTable


def entry(*addresses: str) -> NameEntry:
    return NameEntry(tuple(ip_address(text) for text in addresses))


TABLE = NameTable(
    {
        "cache.default.mesh.internal": entry("240.240.0.1", "2001:2::1"),
        "db.prod.mesh.internal": entry("240.240.0.2"),
        "reviews.shop.svc.cluster.local": entry("240.240.0.3"),
    }
)


def index(table: NameTable = TABLE, *, families: tuple[int, ...] = (4, 6)) -> NameIndex:
    return build_index(table, namespace="default", families=families)


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("cache.default.mesh.internal", ["240.240.0.1", "2001:2::1"]),
        ("CACHE.Default.mesh.INTERNAL.", ["240.240.0.1", "2001:2::1"]),
        ("cache.mesh.internal", ["240.240.0.1", "2001:2::1"]),
        ("cache.default.global", ["240.240.0.1", "2001:2::1"]),
        ("db.prod.mesh.internal", ["240.240.0.2"]),
        ("db.prod.global", ["240.240.0.2"]),
        ("reviews.shop.svc.cluster.local", ["240.240.0.3"]),
        ("db.mesh.internal", None),
        ("reviews.shop.global", None),
        ("cache.default", None),
    ],
)
def test_a_name_means_what_the_mesh_says_in_each_of_its_forms(name: str, addresses: list[str] | None) -> None:
    found = index().lookup(name)
    assert found == (None if addresses is None else tuple(map(ip_address, addresses)))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nosuch.default.mesh.internal", Absent.UNKNOWN),
        ("nosuch.mesh.internal", Absent.UNKNOWN),
        ("mesh.internal", Absent.EMPTY),
        ("prod.mesh.internal", Absent.EMPTY),
        ("xmesh.internal", Absent.FOREIGN),
        ("internal", Absent.FOREIGN),
        ("example.com", Absent.FOREIGN),
        ("nosuch.default.global", Absent.FOREIGN),
        ("xcluster.local", Absent.FOREIGN),
    ],
)
def test_a_name_without_addresses_is_unknown_empty_or_somebody_elses(name: str, why: Absent) -> None:
    assert index().find(encode_name(name)) is why


def test_a_label_that_only_looks_like_the_zone_is_outside_it() -> None:
    # one label "a\x04mesh" + "internal": the bytes end like the zone, the labels do not
    assert index().find(b"\x0aabcde\x04mesh\x08internal\x00") is Absent.FOREIGN


def test_only_addresses_of_families_that_can_be_used_are_told() -> None:
    assert index(families=(4,)).lookup("cache.mesh.internal") == (ip_address("240.240.0.1"),)
    assert index(families=(6,)).lookup("cache.mesh.internal") == (ip_address("2001:2::1"),)


def test_a_name_of_the_table_wins_over_a_form_made_from_another() -> None:
    table = NameTable({"db.default.mesh.internal": entry("240.240.0.5"), "db.mesh.internal": entry("240.240.0.6")})
    assert index(table).lookup("db.mesh.internal") == (ip_address("240.240.0.6"),)


def test_a_name_that_dns_cannot_write_rejects_only_itself() -> None:
    bad = {"a..b": entry("240.240.0.7"), "é.mesh.internal": entry("240.240.0.8"), "x" * 64 + ".mesh.internal": entry()}
    assert index(NameTable({**TABLE.entries, **bad})).lookup("cache.mesh.internal")


def test_an_endless_list_of_addresses_is_cut() -> None:
    many = NameEntry(tuple(ip_address(0xF0F00000 + i) for i in range(5000)))
    found = index(NameTable({"a.b.mesh.internal": many})).find(encode_name("a.b.mesh.internal"))
    assert isinstance(found, Addresses) and len(found.v4) == MAX_ADDRESSES
