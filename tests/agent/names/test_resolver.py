import asyncio
from ipaddress import ip_address
from pathlib import Path

import pytest

from meshagent.agent.names.resolver import (
    DnsPlan,
    Nameserver,
    ResolvConf,
    ResolverFacts,
    decide,
    follow,
    parse_resolv_conf,
    read_resolv_conf,
)
from meshagent.config.settings import DnsMode
from meshagent.model.posture import Posture
from meshagent.runtime.latest import Latest


def test_resolv_conf_is_read_as_the_stub_resolver_reads_it() -> None:
    conf = parse_resolv_conf(
        "# made by hand\nnameserver 10.0.0.53 # main\n nameserver fe80::1%eth0\nnameserver nonsense\n"
        "nameserver 10.0.0.53\n;nameserver 9.9.9.9\nnameserver 10.0.0.54\nnameserver 10.0.0.55\n"
        "domain old.example\nsearch a.example b.example\noptions ndots:2 rotate\nnameserver\n"
    )
    assert [str(server) for server in conf.nameservers] == ["10.0.0.53", "fe80::1%eth0", "10.0.0.54"]
    assert conf.search == ("a.example", "b.example") and conf.rotate


def facts(*servers: str, resolved: bool = False) -> ResolverFacts:
    return ResolverFacts(ResolvConf(tuple(Nameserver(ip_address(s)) for s in servers)), resolved)


BOTH = (DnsMode.CAPTURE, DnsMode.RESOLVED)
CASES = [
    # wanted, posture, facts, able -> mode, captured
    (DnsMode.AUTO, Posture.PERMISSIVE, facts("10.0.0.53"), BOTH, DnsMode.CAPTURE, ["10.0.0.53"]),
    (DnsMode.AUTO, Posture.OUTBOUND, facts("10.0.0.53", "fd00::53"), BOTH, DnsMode.CAPTURE, ["10.0.0.53", "fd00::53"]),
    (DnsMode.AUTO, Posture.STRICT, facts("127.0.0.53", resolved=True), BOTH, DnsMode.RESOLVED, []),
    (DnsMode.AUTO, Posture.STRICT, facts("127.0.0.53", resolved=False), BOTH, DnsMode.CAPTURE, ["127.0.0.53"]),
    (DnsMode.AUTO, Posture.STRICT, facts("10.0.0.53", resolved=True), BOTH, DnsMode.CAPTURE, ["10.0.0.53"]),
    (DnsMode.AUTO, Posture.STRICT, facts("127.0.0.53", "10.0.0.53", resolved=True), BOTH, DnsMode.CAPTURE, None),
    (DnsMode.AUTO, Posture.STRICT, facts("127.0.0.53", resolved=True), BOTH[:1], DnsMode.CAPTURE, ["127.0.0.53"]),
    (DnsMode.RESOLVED, Posture.STRICT, facts("10.0.0.53"), BOTH[:1], DnsMode.CAPTURE, ["10.0.0.53"]),
    (DnsMode.NAMESERVER, Posture.STRICT, facts("10.0.0.53"), BOTH[:1], DnsMode.CAPTURE, ["10.0.0.53"]),
    (DnsMode.CAPTURE, Posture.STRICT, facts("127.0.0.53", resolved=True), BOTH, DnsMode.CAPTURE, ["127.0.0.53"]),
    (DnsMode.OFF, Posture.STRICT, facts("10.0.0.53"), BOTH, DnsMode.OFF, []),
    (DnsMode.CAPTURE, Posture.OBSERVE, facts("10.0.0.53"), BOTH, DnsMode.OFF, []),
    (DnsMode.AUTO, Posture.PERMISSIVE, facts(), BOTH, DnsMode.CAPTURE, ["127.0.0.1"]),
]


@pytest.mark.parametrize(("wanted", "posture", "world", "able", "mode", "captured"), CASES)
def test_what_resolv_conf_names_decides_how_names_reach_the_agent(
    wanted: DnsMode,
    posture: Posture,
    world: ResolverFacts,
    able: tuple[DnsMode, ...],
    mode: DnsMode,
    captured: list[str] | None,
) -> None:
    plan = decide(wanted, posture, world, able=able)
    assert plan.mode is mode and plan.reason
    if captured is not None:
        assert [str(ip) for ip in plan.capture] == captured


@pytest.mark.parametrize(
    ("named", "uplinks", "meant"),
    [
        (["127.0.0.53"], ["10.0.0.53", "fd00::53"], ["10.0.0.53", "fd00::53"]),
        (["127.0.0.53", "10.0.0.53"], ["10.0.0.53"], ["10.0.0.53"]),
        (["127.0.0.53", "10.0.0.54"], ["10.0.0.53"], ["10.0.0.53", "10.0.0.54"]),
        (["10.0.0.53"], ["10.9.9.9"], ["10.0.0.53"]),  # resolved runs, but nobody is sent to it
        (["127.0.0.53"], [], ["127.0.0.53"]),
    ],
)
def test_the_stub_of_resolved_stands_for_the_nameservers_it_asks(
    tmp_path: Path, named: list[str], uplinks: list[str], meant: list[str]
) -> None:
    for name, servers in (("resolv.conf", named), ("uplinks", uplinks)):
        (tmp_path / name).write_text("".join(f"nameserver {server}\n" for server in servers))
    conf = read_resolv_conf(tmp_path / "resolv.conf", tmp_path / "uplinks")
    assert [str(server) for server in conf.nameservers] == meant


def test_a_nameserver_line_of_our_own_is_never_asked() -> None:
    ours = Nameserver(ip_address("127.0.0.1"))
    plan = decide(DnsMode.AUTO, Posture.STRICT, facts("127.0.0.1", "10.0.0.53"), own=[ours])
    assert plan.upstreams == (Nameserver(ip_address("10.0.0.53")),)
    assert isinstance(plan, DnsPlan) and ip_address("127.0.0.1") not in plan.capture


def test_a_changed_resolv_conf_is_followed_also_when_a_link_is_swapped(tmp_path: Path) -> None:
    async def story() -> None:
        one, two, path = tmp_path / "one", tmp_path / "two", tmp_path / "resolv.conf"
        one.write_text("nameserver 10.0.0.1\n")
        two.write_text("nameserver 10.0.0.2\n")
        path.symlink_to(one)
        conf = Latest(ResolvConf(exists=False))
        task = asyncio.create_task(follow(conf, path, interval=0.01))
        async with asyncio.timeout(30):
            assert str((await conf.newer(0)).nameservers[0]) == "10.0.0.1"
            path.unlink()  # a client that replaces it in two steps
            await asyncio.sleep(0.05)
            assert conf.value.nameservers
            path.symlink_to(two)
            assert str((await conf.newer(1)).nameservers[0]) == "10.0.0.2"
            one.write_text("")
            two.write_text("nameserver 10.0.0.3\noptions rotate\n")
            assert (await conf.newer(2)).rotate
        task.cancel()

    asyncio.run(story())


def test_a_missing_or_binary_resolv_conf_is_no_error(tmp_path: Path) -> None:
    assert not read_resolv_conf(tmp_path / "none").exists
    (tmp_path / "bin").write_bytes(b"\xff\xfe\nnameserver 10.0.0.9\n")
    assert len(read_resolv_conf(tmp_path / "bin").nameservers) == 1
