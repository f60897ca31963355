"""Makes the kernel hold an ``Intent``: rules through the guard, routes through netlink. The only file here that acts.

Everything is the whole desired state: applying twice is harmless, and an agent that restarts with the same intent
touches nothing, so counters and connections don't notice.
"""

import threading
from dataclasses import dataclass

from meshagent.agent.capture import diff, routing
from meshagent.agent.capture.backend import render
from meshagent.agent.capture.diff import Step
from meshagent.agent.capture.values import Intent
from meshagent.agent.capture.verify import Sync
from meshagent.guard.client import GuardClient, GuardRefusedError
from meshagent.guard.state import Ruleset
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
    """What an apply did: ``action`` is ``kept``, ``updated`` (elements of sets) or ``replaced``.

    ``digest`` is that of the ruleset the guard holds now.
    """

    action: str
    owned: bool
    digest: str


class Applier:
    """One per agent; methods block for milliseconds and may be called from any thread."""

    def __init__(self, guard: GuardClient) -> None:
        self._guard = guard
        self._lock = threading.Lock()
        self._applied: tuple[Intent, Ruleset] | None = None
        self._routing: tuple[set[Route], set[Rule]] | None = None

    def check(self, intent: Intent) -> None:
        """Let the kernel judge the rules of an intent; changes nothing. Raises ``MeshagentError``."""
        self._guard.check(render(intent))

    def apply(self, intent: Intent) -> Applied:
        """Rules first, then routes: an address that has a route and no rule would hang instead of being refused.

        Only where marks lead has to be known before packets carry them: an answer that misses its ip rule, however
        short the moment, goes out to the caller's own machine, which resets the connection.
        """
        with self._lock:
            step = diff.step(*self._before(intent))
            same = None if step.replace else self._routing  # where only addresses differ
            wanted = same or _routes(routing.plan(intent))
            for rule in wanted[1] - (self._routing[1] if self._routing else set()):
                netlink.ensure_rule(rule)
            try:
                done = self._update(step) or self._replace(step.ruleset)
            except GuardRefusedError as error:
                if error.code == "rolled-back":
                    raise RolledBackError(str((self._guard.state()["rolled_back"] or {}).get("reason", ""))) from error
                raise
            self._applied = intent, step.ruleset
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
            self._applied, self._routing = None, None

    def sync(self) -> Sync:
        """Is the kernel's table what we put there?"""
        return Sync(self._guard.verify())

    def _before(self, intent: Intent) -> tuple[Intent | None, Intent, Ruleset | None]:
        before, installed = self._applied or (None, None)
        return before, intent, installed

    def _update(self, step: Step) -> Applied | None:
        """Only what changed in the sets; None where that isn't the way. The guard says when it holds other rules."""
        if self._applied is None or not step.changes:
            return None
        try:
            owned = self._guard.update(step.changes, self._applied[1].digest, step.ruleset.digest)
        except GuardRefusedError as error:
            if error.code not in ("other-rules", "nft-failed"):
                raise
            return None  # somebody changed an unowned set meanwhile, or the guard: the whole table is always right
        return Applied("updated", owned, step.ruleset.digest)

    def _replace(self, ruleset: Ruleset) -> Applied:
        """What an agent before this one may have applied is kept; after our own others there is nothing to ask."""
        if self._applied is None or self._applied[1].digest == ruleset.digest:
            state = self._guard.state()
            if state["digest"] == ruleset.digest:
                return Applied("kept", bool(state["owned"]), ruleset.digest)
        return Applied("replaced", self._guard.apply(ruleset), ruleset.digest)


def _routes(plan: routing.Routing) -> tuple[set[Route], set[Rule]]:
    """In the words of machine.netlink."""
    routes = {Route(r.network, "lo", r.table, "local" if r.local else "unicast") for r in plan.routes}
    rules = {Rule(rule.family, rule.mark, rule.table, rule.priority, rule.device) for rule in plan.rules}
    return routes, rules
