"""Which PeerAuthentication decides about a workload's port: narrowest wins whole (Istio's rule), pure.

Workload (selector matches) over namespace (no selector) over root namespace; among several of one level the oldest
decides, so policies come oldest first. ``UNSET`` inherits from the next wider level; when nobody says anything the mesh
is permissive. A selector in the root namespace selects nothing, as in Istio.
"""

from collections.abc import Iterable, Iterator

from meshagent.hub.state import Labels, PeerAuthenticationView
from meshagent.model.posture import PlaintextMode


def plaintext_mode(
    policies: Iterable[PeerAuthenticationView], root_namespace: str, namespace: str, labels: Labels, workload_port: int
) -> PlaintextMode:
    """The verdict on plain text to ``workload_port`` of a workload with ``labels`` in ``namespace``."""
    for policy in _narrowest_first(policies, root_namespace, namespace, labels):
        mode = dict(policy.port_modes).get(workload_port) or policy.mode
        if mode is not None:
            return mode
    return PlaintextMode.PERMISSIVE


def _narrowest_first(
    policies: Iterable[PeerAuthenticationView], root_namespace: str, namespace: str, labels: Labels
) -> Iterator[PeerAuthenticationView]:
    """At most one policy of each level: only the winner of a level speaks for it."""
    policies = tuple(policies)
    own = [p for p in policies if p.namespace == namespace]
    levels = (
        (p for p in own if p.selector and namespace != root_namespace and set(p.selector) <= set(labels)),
        (p for p in own if not p.selector),
        (p for p in policies if p.namespace == root_namespace and not p.selector),
    )
    for level in levels:
        winner = next(level, None)
        if winner is not None:
            yield winner
