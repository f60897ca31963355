"""Capture nothing new, now: for whoever has to do it without the agent (``leave``, ``capture off``)."""

from meshagent.agent.capture.backend import render
from meshagent.agent.capture.intent import HostFacts, Wishes, decide
from meshagent.agent.capture.usable import usable_backends
from meshagent.config.settings import Backend, CaptureConfig
from meshagent.guard.client import GuardClient
from meshagent.model.posture import Posture


def stop_capturing(guard: GuardClient, uid: int) -> bool:
    """Open connections through the proxy (``uid``) stay, their rules do; new ones go direct. False: nothing was there.

    A table without its guard (policy closed) counts: it is replaced like one of our own. Raises ``MeshagentError``.
    """
    state, (nft, iptables) = guard.state(), usable_backends()
    if not state.get("installed") and guard.listing() is None:
        return False
    config = CaptureConfig(backend=Backend(state.get("backend") or "auto"))
    facts = HostFacts(proxy_uid=uid, nft_usable=nft, iptables_usable=iptables)
    guard.apply(render(decide(Wishes(Posture.OBSERVE, config, draining=True), facts)))
    return True
