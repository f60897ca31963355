"""What could cost a person the machine is refused by name, with the way around it."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from meshagent.agent.judge.risks import Risk, login_risk, require_accepted
from meshagent.agent.judge.values import Session
from meshagent.config.settings import CaptureConfig, PortRange
from meshagent.model.errors import ExitCode, RefusedError
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided, declared, host_facts

PEER = ip_address("192.0.2.7")


def risks(
    port: int, posture: Posture = Posture.STRICT, *, forced: bool = False, session: Session | None = None
) -> list[Risk]:
    config = CaptureConfig(force_ports=(PortRange(port, port),)) if forced else CaptureConfig()
    intent = decided(posture, config=config, services=(declared("x", port),))
    return list(login_risk(intent, host_facts(), session))


@pytest.mark.parametrize("port", [22, 2222])
def test_declared_sshd_ports_are_spared_so_there_is_no_risk(port: int) -> None:
    assert risks(port) == []


@pytest.mark.parametrize("posture", [Posture.PERMISSIVE, Posture.STRICT])
def test_forcing_a_port_of_sshd_is_a_risk_of_a_name_and_a_remedy(posture: Posture) -> None:
    (risk,) = risks(2222, posture, forced=True)
    assert risk.name == "login" and "2222" in risk.text and "capture.force_ports" in risk.mend


@pytest.mark.parametrize("posture", [Posture.OBSERVE, Posture.OUTBOUND])
def test_where_nothing_inbound_is_captured_forcing_is_no_risk(posture: Posture) -> None:
    assert risks(2222, posture, forced=True) == []


def test_the_session_that_types_is_named_also_where_it_is_no_ssh() -> None:
    (risk,) = risks(7681, session=Session(7681, PEER, 40000, "ttyd"))
    assert "your session from 192.0.2.7" in risk.text and "7681" in risk.text


def test_everything_that_comes_in_is_a_risk_only_for_logins_that_are_not_left_out() -> None:
    intent = replace(decided(Posture.PERMISSIVE), inbound_families=(4,), inbound_direct_ports=(PortRange(22, 22),))
    (risk,) = login_risk(intent, host_facts(), None)
    assert "2222" in risk.text and "capture it" in risk.text


def test_a_session_elsewhere_and_a_session_of_unknown_port_are_no_risk() -> None:
    assert risks(80, session=Session(7681, PEER, 40000, "ttyd")) == []
    assert risks(80, session=Session()) == []


def test_a_risk_is_exit_5_until_it_is_accepted_by_its_name() -> None:
    found = [Risk("login", "this and that", "mend it")]
    with pytest.raises(RefusedError) as refused:
        require_accepted(found, ["other"])
    assert refused.value.exit_code is ExitCode.REFUSED
    assert refused.value.hint == "mend it; or accept it: --accept login"
    require_accepted(found, ["login"])
