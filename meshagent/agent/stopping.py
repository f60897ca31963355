"""Capture nothing new, now: for whoever has to do it without the agent (``leave``, ``capture off``)."""

from meshagent.agent.capture.intent import HostFacts, Wishes, decide
from meshagent.agent.capture.nft import render
from meshagent.guard.client import GuardClient
from meshagent.model.posture import Posture


def stop_capturing(guard: GuardClient, uid: int) -> bool:
    """Open connections through the proxy (``uid``) stay, their rules do; new ones go direct. False: nothing was there.

    A table without its guard (policy closed) counts: it is replaced like one of our own. Raises ``MeshagentError``.
    """
    if not guard.state().get("installed") and guard.listing() is None:
        return False
    guard.apply(render(decide(Wishes(Posture.OBSERVE, draining=True), HostFacts(proxy_uid=uid))))
    return True
