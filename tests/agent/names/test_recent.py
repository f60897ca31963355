"""What programs asked for lately is counted by name, within bounds."""

from meshagent.agent.names.recent import LATELY, MOST, AskedName, RecentNames


def wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def query(name: str, ident: int = 1) -> bytes:
    return ident.to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0\0\0" + wire(name) + b"\0\1\0\1"


HOSTS = {wire("cache.mesh.internal"), wire("web.mesh.internal")}


def test_names_of_the_mesh_are_counted_whatever_their_case_and_others_are_not() -> None:
    recent = RecentNames()
    for at, name in enumerate(("cache.mesh.internal", "CACHE.mesh.internal", "web.mesh.internal", "no.mesh.internal")):
        recent.note(query(name, at), HOSTS, float(at))
    assert recent.lately(10.0) == (AskedName("cache.mesh.internal", 2, 9.0), AskedName("web.mesh.internal", 1, 8.0))


def test_who_asked_long_ago_is_forgotten_and_counted_anew() -> None:
    recent = RecentNames()
    for at in (0.0, 1.0, 2.0 + LATELY):
        recent.note(query("cache.mesh.internal"), HOSTS, at)
    assert recent.lately(2.0 + LATELY) == (AskedName("cache.mesh.internal", 1, 0.0),)
    assert recent.lately(3.0 + 2 * LATELY) == ()


def test_a_program_that_asks_for_everything_fills_no_memory_and_garbage_breaks_nothing() -> None:
    recent = RecentNames()
    hosts = {wire(f"s{n}.mesh.internal") for n in range(MOST + 50)}
    for n in range(MOST + 50):
        recent.note(query(f"s{n}.mesh.internal"), hosts, 0.0)
    assert len(recent.lately(0.0)) == MOST
    recent.note(query("s600.mesh.internal"), hosts | {wire("s600.mesh.internal")}, LATELY + 1)
    assert [asked.name for asked in recent.lately(LATELY + 1)] == ["s600.mesh.internal"]
    for garbage in (b"", b"\0" * 12, b"\xff" * 40, query("cache.mesh.internal")[:20]):
        recent.note(garbage, hosts, LATELY + 1)
    assert len(recent.lately(LATELY + 1)) == 1
