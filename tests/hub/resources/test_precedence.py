"""PeerAuthentication: narrowest wins whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshagent.hub.resources.precedence import plaintext_mode
from meshagent.hub.state import PeerAuthenticationView
from meshagent.model.posture import PlaintextMode

STRICT, PERMISSIVE = PlaintextMode.STRICT, PlaintextMode.PERMISSIVE
ROOT = "istio-system"
APP = (("app", "db"),)


def policy(
    namespace: str, mode: PlaintextMode | None, selector: object = (), **ports: PlaintextMode | None
) -> PeerAuthenticationView:
    port_modes = tuple((int(port[1:]), value) for port, value in ports.items())
    return PeerAuthenticationView(namespace, "p", selector, mode, port_modes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policies", "verdict"),
    [
        ([], PERMISSIVE),
        ([policy(ROOT, STRICT)], STRICT),
        ([policy(ROOT, STRICT), policy("default", PERMISSIVE)], PERMISSIVE),
        ([policy(ROOT, STRICT), policy("default", None)], STRICT),  # UNSET inherits
        ([policy("other", STRICT)], PERMISSIVE),
        ([policy("default", PERMISSIVE), policy("default", STRICT, APP)], STRICT),
        ([policy("default", STRICT, (("app", "web"),))], PERMISSIVE),
        ([policy("default", STRICT, (*APP, ("version", "2")))], PERMISSIVE),  # all labels must match
        ([policy(ROOT, STRICT, APP)], PERMISSIVE),  # a selector in the root namespace selects nothing
        ([policy("default", PERMISSIVE, APP, p3306=STRICT)], STRICT),
        ([policy("default", STRICT, APP, p3306=PERMISSIVE)], PERMISSIVE),
        ([policy("default", STRICT, APP, p3306=None)], STRICT),
        ([policy("default", PERMISSIVE, APP, p80=STRICT)], PERMISSIVE),
        ([policy("default", STRICT), policy("default", None, APP, p80=PERMISSIVE)], STRICT),
        ([policy("default", STRICT), policy("default", PERMISSIVE)], STRICT),  # the oldest of a level
    ],
)
def test_the_verdict_on_a_port(policies: list[PeerAuthenticationView], verdict: PlaintextMode) -> None:
    assert plaintext_mode(policies, ROOT, "default", APP, 3306) is verdict


modes = st.sampled_from([None, STRICT, PERMISSIVE])


@given(modes, modes, modes)
def test_the_narrowest_level_that_says_something_decides(
    workload: PlaintextMode | None, namespace: PlaintextMode | None, root: PlaintextMode | None
) -> None:
    policies = [policy(ROOT, root), policy("default", namespace), policy("default", workload, APP)]
    expected = workload or namespace or root or PERMISSIVE
    assert plaintext_mode(policies, ROOT, "default", APP, 3306) is expected
    assert plaintext_mode(reversed(policies), ROOT, "default", APP, 3306) is expected
