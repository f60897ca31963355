"""Only these units, or all but these: by control group, with real processes in real ones."""

from collections.abc import Iterator

import pytest

from meshagent.config.settings import CaptureConfig, Exclude, Ipv6Mode, OutboundScope
from meshagent.machine import cgroups
from meshagent.model.posture import Posture
from tests.agent.capture.stand import Stand, mesh
from tests.fakes.units import Units, units

pytestmark = pytest.mark.root


@pytest.fixture
def backend() -> str:
    """Legacy iptables refuses to do this (test_backend.py)."""
    return "nft"


@pytest.fixture
def made() -> Iterator[Units]:
    with units() as found:
        yield found


def dial_from(stand: Stand, group: object, address: str, port: int) -> str:
    """As ``stand.dial`` by a process in a control group: the first line, or the error's name."""
    return stand.host.python(_DIAL, str(group), address, str(port)).strip()


_DIAL = """
import errno, os, socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET)
s.settimeout(3)
try:
    s.connect((sys.argv[2], int(sys.argv[3])))
    print(s.makefile().readline().strip())
except OSError as e:
    print(errno.errorcode.get(e.errno, "timeout"))
"""


def found(*names: str) -> dict[str, object]:
    return {"cgroups": cgroups.find(names)}


def test_only_the_units_named_are_in_the_mesh(stand: Stand, made: Units) -> None:
    stand.proxy()
    stand.serve(stand.peer, 3306, "machine")
    target = stand.own(stand.peer)
    web, inside, other = made.start("web.service"), made.start("web.service", "worker"), made.start("other.service")
    name = made.name("web.service")
    config = CaptureConfig(units=(name,))
    stand.capture(Posture.OUTBOUND, mesh(target, 3306), mesh(stand.virtual, 80), config=config, facts=found(name))

    assert dial_from(stand, inside, target, 3306).startswith("proxy "), "what a unit starts belongs to it"
    assert dial_from(stand, inside, stand.virtual, 80).startswith("proxy ")
    assert dial_from(stand, other, target, 3306).startswith("machine ")
    assert stand.dial(target, 3306).startswith("machine "), "neither is a program of no unit"
    assert dial_from(stand, other, stand.virtual, 80) == "ECONNREFUSED", "at once: it has no direct way"
    assert web.exists()


def test_a_whole_slice_can_be_in_the_mesh_or_out_of_it(stand: Stand, made: Units) -> None:
    stand.proxy()
    stand.serve(stand.peer, 3306, "machine")
    target = stand.own(stand.peer)
    web = made.start("web.service")
    for config, inside, outside in (
        (CaptureConfig(units=(made.slice,)), "proxy ", "machine "),
        (CaptureConfig(exclude=Exclude(units=(made.slice,))), "machine ", "proxy "),
    ):
        stand.capture(Posture.OUTBOUND, mesh(target, 3306), config=config, facts=found(made.slice))
        assert dial_from(stand, web, target, 3306).startswith(inside)
        assert stand.dial(target, 3306).startswith(outside)


def test_a_unit_that_starts_again_is_captured_again_and_one_that_stops_is_no_error(stand: Stand, made: Units) -> None:
    stand.proxy()
    stand.serve(stand.peer, 3306, "machine")
    target, name = stand.own(stand.peer), made.name("web.service")
    config = CaptureConfig(units=(name,))
    for _ in range(2):
        web = made.start("web.service")
        intent = stand.capture(Posture.OUTBOUND, mesh(target, 3306), config=config, facts=found(name))
        assert dial_from(stand, web, target, 3306).startswith("proxy ")
        assert not intent.waiting
        made.stop("web.service")
        intent = stand.capture(Posture.OUTBOUND, mesh(target, 3306), config=config, facts=found(name))
        assert name in " ".join(intent.waiting)
        assert stand.dial(target, 3306).startswith("machine ")


def test_units_limit_everything_that_leaves_and_what_is_refused_over_ipv6(stand: Stand, made: Units) -> None:
    stand.proxy()
    stand.serve(stand.peer, 80, "web")
    target, name = stand.own(stand.peer), made.name("web.service")
    web = made.start("web.service")
    for ipv6 in (Ipv6Mode.CAPTURE, Ipv6Mode.REFUSE):
        config = CaptureConfig(outbound=OutboundScope.ALL, units=(name,), ipv6=ipv6)
        stand.capture(Posture.OUTBOUND, config=config, facts=found(name))
        said = dial_from(stand, web, target, 80)
        assert said == "ECONNREFUSED" if (stand.family, ipv6) == (6, Ipv6Mode.REFUSE) else said.startswith("proxy ")
        assert stand.dial(target, 80).startswith("web ")


def test_a_unit_with_an_escaped_name_is_matched(stand4: Stand, made: Units) -> None:
    stand = stand4
    stand.proxy()
    unit = r"my\x2dshop@1:a.service"
    web, name = made.start(unit), made.name(unit)
    stand.capture(Posture.OUTBOUND, mesh(stand.virtual, 80), config=CaptureConfig(units=(name,)), facts=found(name))
    assert dial_from(stand, web, stand.virtual, 80).startswith("proxy ")
