"""Envoy's texts, as Envoy 1.40 writes them."""

import pytest

from meshagent.agent.relay.nack import MAX_REASON, blame
from meshagent.protocol.types import CDS, EDS, LDS, RDS


@pytest.mark.parametrize(
    ("type_url", "error", "suspects", "bad", "applied"),
    [
        (
            CDS,
            "Error adding/updating cluster(s) outbound|80||a: unknown type, outbound|80||b: no",
            ["outbound|80||a", "outbound|80||ab", "outbound|80||b"],
            {"outbound|80||a", "outbound|80||b"},
            True,
        ),
        (
            LDS,
            "Error adding/updating listener(s) 10.0.0.1_80: Didn't find a registered implementation\n",
            ["10.0.0.1_80", "10.0.0.1_8080"],
            {"10.0.0.1_80"},
            True,
        ),
        (LDS, "Proto constraint validation failed (ListenerValidationError)", ["a", "b"], set(), False),
        (RDS, "route: unknown cluster 'x' in virtual host of web", ["web", "api"], {"web"}, False),
        (EDS, "whatever", ["one"], {"one"}, True),
        (CDS, "", ["a"], {"a"}, True),
    ],
)
def test_exactly_the_named_are_to_blame(
    type_url: str, error: str, suspects: list[str], bad: set[str], applied: bool
) -> None:
    found = blame(type_url, error, suspects)
    assert (set(found.bad), found.applied) == (bad, applied)


def test_a_reason_is_one_bounded_line() -> None:
    found = blame(CDS, "a\nb\x1b[31m" + "x" * 10_000, ["one"])
    assert "\n" not in found.reason
    assert "\x1b" not in found.reason
    assert len(found.reason) == MAX_REASON
    assert blame(CDS, "", ["one"]).reason
