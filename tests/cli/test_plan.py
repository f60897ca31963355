"""The plan as people see it is short; programs get all of it."""

from ipaddress import ip_address

from meshagent.agent.capture.nft import render
from meshagent.cli.plan import short_rules
from meshagent.model.posture import Posture
from tests.agent.capture.builders import decided


def test_a_set_of_thousands_of_addresses_shows_the_first_and_how_many_more() -> None:
    rules = render(decided(Posture.OUTBOUND, *(f"{ip_address(0xF0F00000 + n)}:80" for n in range(1, 3001)))).table
    shown = short_rules(rules)
    assert "240.240.0.8 . 80" in shown and "240.240.0.9 . 80" not in shown
    assert "# and 2992 more }" in shown
    assert len(shown.splitlines()) < len(rules.splitlines()) - 2980
    assert shown.rstrip().endswith("}")


def test_short_sets_are_shown_whole() -> None:
    rules = render(decided(Posture.PERMISSIVE, "240.240.0.7:80", "240.240.0.8:80")).table
    assert short_rules(rules) == rules.rstrip("\n")
