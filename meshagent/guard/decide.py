"""What the guard does on every request and event. Pure: a state and an event in, a plan out; loop.py performs plans.

A plan is one nft transaction, the state after it, and whether the roll-back file changes. If the kernel refuses the
transaction the new state is dropped, so the state always says what the kernel holds. How rules follow each other in
the kernel is in installing.py.
"""

from collections.abc import Mapping
from dataclasses import replace

from meshagent.guard import elements
from meshagent.guard.elements import Change
from meshagent.guard.installing import (
    DELETE_ANCHOR,
    DELETE_HOLD,
    Facts,
    LegacyChange,
    Memory,
    Plan,
    carried_lines,
    check_batch,
    clear_lines,
    hold_lines,
    in_place,
    install,
    legacy_texts,
)
from meshagent.guard.state import NFT, Bypass, Heal, RolledBack, Ruleset, State, Trial, Watch
from meshagent.guard.wire import RequestError
from meshagent.model.marks import TABLE

__all__ = [
    "HUNG_GATE",
    "REFERENCE_TABLE",
    "Facts",
    "LegacyChange",
    "Memory",
    "Plan",
    "carried_lines",
    "check_batch",
    "in_place",
    "legacy_texts",
]

#: Exists for a moment, while the kernel's rules are compared with what they should be.
REFERENCE_TABLE = f"{TABLE}_reference"


#: Of the proxy; the agent's other gate, ``resolver``, has nothing that could be refused.
PROXY_GATE = "proxy"
#: A gate that is open while the proxy hangs or is dead: what would be redirected to it is refused, neither kept waiting
#: nor left to whoever takes its port.
HUNG_GATE = "hung"


def apply(state: State, wanted: Ruleset, facts: Facts) -> Plan:
    """Put ``wanted`` in the place of what is installed; applying twice is harmless.

    After a roll-back nothing is captured again until the agent has acknowledged it: an agent that hung meanwhile must
    not install the unconfirmed rules once more.
    """
    _require_acknowledged(state, wanted)
    return install(state, wanted, facts)


def _require_acknowledged(state: State, wanted: Ruleset) -> None:
    same = state.installed is not None and wanted.digest == state.installed.digest
    if state.rolled_back and wanted.rules and not same:
        raise RequestError(
            "rolled-back", "a change was rolled back and nobody has taken note of it", "acknowledge it, then apply"
        )


def update(state: State, changes: Mapping[str, Change], expects: str, digest: str) -> Plan:
    """Change addresses in sets only. ``expects`` is the digest of the ruleset they lead from, ``digest`` afterwards."""
    before = state.installed
    if before is None or not before.rules or before.digest != expects:
        raise RequestError("other-rules", "the rules are not those this change starts from", "apply the whole ruleset")
    if before.backend != NFT:
        raise RequestError("no-elements", "legacy iptables has no sets to update", "apply the whole ruleset")
    if unknown := changes.keys() - before.sets.keys():
        raise RequestError("bad-request", f"the rules have no set {min(unknown)}")
    sets = {
        name: elements.merged(name, keys, changes[name]) if name in changes else keys
        for name, keys in before.sets.items()
    }
    wanted = replace(before, sets=sets, digest=digest)
    _require_acknowledged(state, wanted)
    return Plan(replace(state, installed=wanted), changes=changes)


def bare(state: State, facts: Facts) -> Plan:
    """The last resort of a roll-back whose rules the kernel refuses: no rules, the anchor stays."""
    installed = state.installed or Ruleset()
    return install(state, Ruleset(anchor=installed.anchor, backend=installed.backend), facts)


def reference_batch(state: State) -> str:
    """A dormant copy of what should be in the kernel, to compare with what is: same rules, same sets, open gates."""
    wanted = state.installed
    assert wanted is not None
    text = wanted.table.replace(f"table inet {TABLE} {{\n", f"table inet {REFERENCE_TABLE} {{\n\tflags dormant;\n", 1)
    opened = "".join(wanted.gates[gate].bypass for gate in sorted(state.bypasses) if gate in wanted.gates)
    return text + opened.replace(f" inet {TABLE} ", f" inet {REFERENCE_TABLE} ")


def remove(state: State, anchor: bool, facts: Facts | None = None) -> Plan:
    """Take our rules out, of both backends; the anchor only when its connections are gone or given up."""
    batch = clear_lines(state, facts) + (DELETE_HOLD if facts and facts.hold_present else "")
    batch += DELETE_ANCHOR if anchor else ""
    legacy = LegacyChange(keep_anchor=not anchor) if facts and facts.legacy_present else None
    after = replace(state, installed=None, owned=False, kept=False, bypasses={}, watches={})
    return Plan(after, batch if facts is None or facts.nft else "", legacy=legacy)


# --- gates -----------------------------------------------------------------------------------------------------------


def bypass(state: State, gate: str, reason: str, now_at: float) -> Plan:
    """Let new connections pass around a helper. Opening an open gate changes nothing.

    Rules without that gate are policy closed: nothing opens them, whoever asks.
    """
    rules = state.installed if state.installed and state.installed.rules else None
    if gate in state.bypasses or (rules and gate not in rules.gates):
        return Plan(state)
    opened = replace(state, bypasses={**state.bypasses, gate: Bypass(now_at, reason)})
    return _flipped(opened, rules, rules.gates[gate].bypass if rules else "")


def recapture(state: State, gate: str) -> Plan:
    """Close a gate again: new connections are captured."""
    if gate not in state.bypasses:
        return Plan(state)
    closed = replace(state, bypasses={name: value for name, value in state.bypasses.items() if name != gate})
    rules = state.installed if state.installed and state.installed.rules else None
    return _flipped(closed, rules, rules.gates[gate].recapture if rules and gate in rules.gates else "")


def _flipped(state: State, rules: Ruleset | None, lines: str) -> Plan:
    if rules is None or rules.backend == NFT:
        return Plan(state, lines)
    return Plan(state, legacy=LegacyChange(flip=lines) if lines else None)


def process_died(state: State, gate: str, watch: Watch, now_at: float) -> Plan:
    """A watched process ended: what can go around it does if policy allows. Everything else is refused by rules: nobody
    listens where it would be redirected to, or a stranger does."""
    state, reason = state.without_watch(gate), f"process {watch.pid} ended"
    refusing = bypass(state, HUNG_GATE, reason, now_at) if gate == PROXY_GATE else Plan(state)
    around = bypass(refusing.state, gate, reason, now_at) if watch.opens else Plan(refusing.state)
    return _both(refusing, around)


def hangs(state: State, watch: Watch) -> bool:
    """Whether this very process was found to hang by the guard before."""
    known = state.bypasses.get(HUNG_GATE)
    return known is not None and known.reason == _hangs(watch)


def _hangs(watch: Watch) -> str:
    return f"process {watch.pid} hangs"


def hung(state: State, gate: str, watch: Watch, now_at: float) -> Plan:
    """A watched process answers no more: what can go around it does if policy allows, everything else is refused."""
    reason = _hangs(watch)
    refusing = bypass(replace(state, hangs=state.hangs + 1), HUNG_GATE, reason, now_at)
    around = bypass(refusing.state, gate, reason, now_at) if watch.opens else Plan(refusing.state)
    return _both(refusing, around)


def well(state: State, gate: str) -> Plan:
    """It answers again, or another has taken its place and can do its work."""
    refused = recapture(state, HUNG_GATE)
    return _both(refused, recapture(refused.state, gate))


def _both(first: Plan, second: Plan) -> Plan:
    """Two flips in one transaction, or in legacy tables one after the other."""
    flips = "".join(plan.legacy.flip for plan in (first, second) if plan.legacy)
    legacy = LegacyChange(flip=flips) if flips else None
    return Plan(second.state, first.batch + second.batch, legacy=legacy)


# --- the dead-man ----------------------------------------------------------------------------------------------------


def arm(state: State, trial: Trial) -> Plan:
    """Start or restart the timer. A second change during a trial keeps the first one's way back."""
    back_to = state.trial.back_to if state.trial else trial.back_to
    return Plan(replace(state, trial=replace(trial, back_to=back_to), rolled_back=None), memory=Memory.WRITE)


def confirm(state: State) -> Plan:
    """Keep the change. Without a pending one this does nothing."""
    return Plan(replace(state, trial=None), memory=Memory.FORGET) if state.trial else Plan(state)


def roll_back(state: State, reason: str, now_at: float, facts: Facts) -> Plan:
    """Nobody confirmed: back to what the trial names, and remember it for the agent and over a reboot."""
    assert state.trial is not None
    undone = RolledBack(now_at, reason, state.trial.note)
    plan = install(state, state.trial.back_to, facts)
    return replace(plan, state=replace(plan.state, trial=None, rolled_back=undone), memory=Memory.WRITE)


def acknowledge(state: State) -> Plan:
    """The agent has taken note of the roll-back."""
    return Plan(replace(state, rolled_back=None), memory=Memory.FORGET) if state.rolled_back else Plan(state)


def after_start(remembered: State, boot_id: str, remembered_boot: str, now_at: float) -> Plan:
    """A guard starts and finds the file of another: an unconfirmed change of an earlier boot counts as rolled back.

    Within one boot the timer goes on as if nothing had happened, also one that is over: ``deadline`` counts boot time,
    and the rules that have to be undone may still be in the kernel.
    """
    trial = remembered.trial
    if trial is None or boot_id == remembered_boot:
        return Plan(remembered)
    undone = RolledBack(now_at, "the host restarted before it was confirmed", trial.note)
    return Plan(replace(remembered, trial=None, rolled_back=undone), memory=Memory.WRITE)


# --- others ----------------------------------------------------------------------------------------------------------


def reinstall(state: State, facts: Facts) -> Plan:
    """Put what is installed in place once more, whatever others made of it."""
    assert state.installed is not None
    return install(replace(state, owned=False, kept=False), state.installed, facts)


def reinstall_anchor(state: State) -> Plan:
    """Only the anchor was removed: NAT stays hooked by our own table meanwhile, so making it again is enough."""
    assert state.installed is not None
    return Plan(state, state.installed.anchor)


def reheld(state: State, facts: Facts) -> Plan:
    """Only the table that holds NAT beside nobody's has to be made."""
    assert state.installed is not None
    return Plan(state, hold_lines(state.installed, facts, owned=state.owned))


def healed(state: State, who: tuple[int, str], what: str, now_at: float) -> State:
    """Remember who (pid and name) changed our rules."""
    return replace(state, heals=state.heals + 1, last_heal=Heal(now_at, who[0], who[1], what))
