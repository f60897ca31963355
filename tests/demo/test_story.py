"""The whole demo, run as a person runs it."""

import json
from pathlib import Path

import pytest

from meshagent.demo.story import STEPS
from meshagent.lab.waiting import patience
from tests.demo.demos import start

NAMES = [
    "hub",
    "enroll",
    "retrofit",
    "names",
    "hard-coded-ip",
    "open-connection",
    "envoy-killed",
    "hub-away",
    "outsider",
    "leave",
]

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("alone"),
    pytest.mark.xdist_group("demo"),
    pytest.mark.timeout(240),
]


def test_every_check_of_the_story_holds_and_the_outcome_is_one_json_document(envoy: Path) -> None:
    demo = start("-o", "json")
    out, err = demo.communicate(timeout=200)
    told = json.loads(out)
    failed = [step for step in told["steps"] if not step["ok"]]
    assert not failed, f"{failed}\n{err}"
    assert demo.returncode == 0 and told["ok"] is True
    assert [step["name"] for step in told["steps"]] == NAMES == [name for name, _, _ in STEPS]
    assert all(set(step) == {"name", "ok", "detail", "seconds"} and step["detail"] for step in told["steps"])
    assert sum(step["seconds"] for step in told["steps"]) < 45 * patience()
    assert "\x1b" not in out + err
