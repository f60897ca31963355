"""The units: systemd takes them without a complaint, and each is shut in as far as its work allows."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "packaging" / "systemd"
#: Unit -> the exposure (0 to 10) that systemd-analyze may find at most. The agent manages routes, users and programs.
EXPOSURE = {"meshagent-guard": 3.6, "meshagent-hub": 2.0, "meshagent": 8.0}


def unit(name: str) -> configparser.SectionProxy:
    """The [Service] section; of a key that stands there twice the last counts."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / f"{name}.service")
    return parser["Service"]


def analyzed(*words: str) -> str:
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_there_are_no_other_units_than_the_ones_looked_at() -> None:
    assert {path.stem for path in UNITS.iterdir()} == EXPOSURE.keys()


@pytest.mark.parametrize("name", EXPOSURE)
def test_systemd_takes_the_unit_without_a_complaint(name: str) -> None:
    said = analyzed("verify", "--man=no", str(UNITS / f"{name}.service"))
    not_installed = re.compile(r".*is not executable: No such file or directory|.*Unit .*\.service not found.*")
    assert [line for line in said.splitlines() if not not_installed.fullmatch(line)] == []


@pytest.mark.parametrize("name", EXPOSURE)
def test_the_unit_is_shut_in(name: str) -> None:
    said = analyzed("security", "--offline=true", str(UNITS / f"{name}.service"))
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found, said
    assert float(found[1]) <= EXPOSURE[name]
    assert unit(name)["CapabilityBoundingSet"].count("CAP_SYS_ADMIN") == 0


@pytest.mark.parametrize("name", EXPOSURE)
def test_systemd_hears_of_readiness_and_of_a_hang(name: str) -> None:
    service = unit(name)
    assert service["Type"] == "notify" and service["WatchdogSec"]


@pytest.mark.parametrize("name", EXPOSURE)
def test_the_unit_comes_back_however_often_it_dies_and_a_guard_that_was_told_to_end_does_not(name: str) -> None:
    assert unit(name)["Restart"] == ("on-failure" if name == "meshagent-guard" else "always")
    assert "StartLimitIntervalSec=0" in (UNITS / f"{name}.service").read_text()


def test_what_must_outlive_the_agent_does() -> None:
    agent = unit("meshagent")
    assert agent["KillMode"] == "process" and agent["RuntimeDirectoryPreserve"] == "yes"
    assert {"2", "3"} <= set(agent["RestartPreventExitStatus"].split())


def test_the_hub_needs_no_privilege_at_all() -> None:
    hub = unit("meshagent-hub")
    assert hub["User"] == "meshagent-hub" and hub["CapabilityBoundingSet"] == "" and hub["ProtectSystem"] == "strict"
