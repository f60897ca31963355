"""Makes the kernel hold an ``Intent``: rules through the guard, routes through netlink. The only file here that acts.

Everything is the whole desired state: applying twice is harmless, and an agent that restarts with the same intent
touches nothing, so counters and connections don't notice.
"""

import threading
from dataclasses import dataclass
from typing import Any

from meshagent.agent.capture import diff, nft, routing, verify
from meshagent.agent.capture.values import Intent
from meshagent.agent.capture.verify import Sync
from meshagent.guard import readback
from meshagent.guard.client import GuardClient, GuardRefusedError
from meshagent.machine import netlink
from meshagent.machine.rtnetlink import Route, Rule
from meshagent.model.errors import MeshagentError


class RolledBackError(MeshagentError):
    """The guard undid an unconfirmed change; nothing is captured until somebody takes note of it."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            "rolled-back",
            f"the last change was undone: {reason}",
            hint="look at `meshagent plan`, then set the posture again and confirm it",
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """What an apply did: ``action`` is ``kept``, ``updated`` (elements of sets) or ``replaced``."""

    action: str
    owned: bool


class Applier:
    """One per agent; methods block for milliseconds and may be called from any thread."""

    def __init__(self, guard: GuardClient) -> None:
        self._guard = guard
        self._lock = threading.Lock()
        self._applied: Intent | None = None
        self._routing: tuple[set[Route], set[Rule]] | None = None
        self._expected = ""

    def check(self, intent: Intent) -> None:
        """Let the kernel judge the rules of an intent; changes nothing. Raises ``MeshagentError``."""
        self._guard.check(nft.render(intent))

    def apply(self, intent: Intent) -> Applied:
        """Rules first, then routes: an address that has a route and no rule would hang instead of being refused."""
        with self._lock:
            state = self._guard.state()
            ruleset = nft.render(intent)
            if ruleset.table and state["rolled_back"] and state["digest"] != ruleset.digest:
                raise RolledBackError(str(state["rolled_back"]["reason"]))
            done = self._rules(intent, state)
            self._applied, wanted = intent, _routes(routing.plan(intent))
            if wanted != self._routing:
                netlink.set_ours(*wanted)
                self._routing = wanted
            return done

    def heal_routes(self) -> bool:
        """Put back routes and rules that somebody took away (systemd-networkd deletes foreign ones); True if any."""
        with self._lock:
            if self._routing is None or self._routing == (set(netlink.our_routes()), set(netlink.our_rules())):
                return False
            netlink.set_ours(*self._routing)
            return True

    def remove(self) -> None:
        """Give the host back: our table, our routes and rules, and last the table that keeps connections alive."""
        with self._lock:
            self._guard.remove(anchor=False)
            netlink.remove_ours()
            self._guard.remove(anchor=True)
            self._applied, self._routing, self._expected = None, None, ""

    def sync(self) -> Sync:
        """Is the kernel's table what we put there? An owned table can't be changed by anybody else."""
        with self._lock:
            listing = self._guard.listing()
            if not self._expected and listing is not None:
                state = self._guard.state()
                self._expected = state["kernel_digest"] or (readback.digest(listing) if state["owned"] else "unknown")
            return verify.compare(listing, self._expected)

    def _rules(self, intent: Intent, state: dict[str, Any]) -> Applied:
        ruleset = nft.render(intent)
        if state["digest"] == ruleset.digest:
            return Applied("kept", bool(state["owned"]))
        known = self._applied if self._applied and state["digest"] == nft.render(self._applied).digest else None
        step = diff.step(known, intent)
        self._expected = ""
        if step.replace:
            return Applied("replaced", self._replace(intent))
        try:
            self._guard.update(step.lines, step.ruleset)
        except GuardRefusedError:  # somebody changed an unowned set meanwhile: the whole table is always right
            return Applied("replaced", self._replace(intent))
        return Applied("updated", bool(state["owned"]))

    def _replace(self, intent: Intent) -> bool:
        owned = self._guard.apply(nft.render(intent))
        listing = self._guard.listing()
        self._expected = readback.digest(listing) if listing is not None else ""
        return owned


def _routes(plan: routing.Routing) -> tuple[set[Route], set[Rule]]:
    """In the words of machine.netlink."""
    routes = {Route(r.network, "lo", r.table, "local" if r.local else "unicast") for r in plan.routes}
    rules = {Rule(rule.family, rule.mark, rule.table, rule.priority) for rule in plan.rules}
    return routes, rules
