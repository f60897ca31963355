"""Every condition of the hub is in its documentation, with its severity."""

import re
from pathlib import Path

from meshagent.hub.health import HUB_CONDITIONS


def test_the_documentation_names_exactly_the_conditions_there_are() -> None:
    text = Path("docs/hub.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `([a-z-]+)` \| (error|warning) \|", text, re.MULTILINE))
    assert documented == {code: spec.severity.value for code, spec in HUB_CONDITIONS.items()}
    assert all(spec.remedy and spec.title for spec in HUB_CONDITIONS.values())
