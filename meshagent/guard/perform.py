"""Performs what decide.py plans: the one place where the guard touches kernel, disk and other processes.

One thread, no locks: requests, timers and events come one after the other from loop.py.
"""

import contextlib
import os
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from meshagent import __version__
from meshagent.guard import decide, memory, processes, readback
from meshagent.guard import probe as probing
from meshagent.guard import pulse as pulses
from meshagent.guard.backends import Nft, NoNft
from meshagent.guard.decide import REFERENCE_TABLE, Facts, Memory, Plan
from meshagent.guard.elements import Change
from meshagent.guard.legacy import LegacyError
from meshagent.guard.legacy_side import LegacySide, on_legacy
from meshagent.guard.libnftables import NftError
from meshagent.guard.probe import Probe
from meshagent.guard.processes import Pidfd
from meshagent.guard.pulse import Pulse
from meshagent.guard.state import IPTABLES, Ruleset, State, Trial, Watch
from meshagent.guard.succession import Estate
from meshagent.guard.wire import RequestError
from meshagent.model.marks import ANCHOR_TABLE, TABLE


def boot_seconds() -> float:
    """Seconds since boot, also while suspended: a dead-man must not wait for a laptop's lid."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def say(text: str, **values: object) -> None:
    """One line on stderr; the agent or the journal keeps it."""
    fields = " ".join(f"{key}={value!r}" for key, value in values.items())
    print(f"{text} {fields}".rstrip(), file=sys.stderr, flush=True)  # noqa: T201 the guard's log is its stderr


@dataclass
class Guard:
    """The state and the things it acts on.

    ``pidfds`` (by gate) are for the loop to wait on, ``retired`` for it to close, after it has stopped waiting: a
    number that is closed too early comes back as somebody else's.
    """

    context: Nft
    rollback_file: Path
    state: State = field(default_factory=State)
    owner_supported: bool = False
    started_at: float = field(default_factory=time.time)
    applied_at: float = 0.0
    kernel_digest: str = ""
    settled: bool = True
    legacy: LegacySide = field(default_factory=LegacySide)
    pidfds: dict[str, Pidfd] = field(default_factory=dict)
    retired: list[Pidfd | Probe] = field(default_factory=list)
    pulse: Pulse | None = None
    asked_gate: str = ""
    probe: Probe | None = None
    place: int = 0

    def start(self) -> None:
        """Probe the kernel and pick up what an earlier guard remembered."""
        self.owner_supported = self._probe_owner()
        self.legacy.find(needed=isinstance(self.context, NoNft))
        remembered, boot = memory.load(self.rollback_file)
        plan = decide.after_start(remembered, memory.boot_id(), boot, boot_seconds(), time.time())
        self._perform(plan)
        if plan.memory is Memory.WRITE:
            say("a change was not confirmed before the guard ended", reason=plan.state.rolled_back)

    def follow(self, estate: Estate) -> None:
        """Go on where the guard before left; the kernel holds what it left."""
        self.state, self.started_at = estate.state, estate.started_at
        self.owner_supported = self._probe_owner()
        self.legacy.find(needed=isinstance(self.context, NoNft))
        self.settled = not on_legacy(self.state)

    def resume(self) -> None:
        """What happened while nobody looked: processes that ended, rules that others touched."""
        for gate, watch in dict(self.state.watches).items():
            self.state = self.state.without_watch(gate)
            with contextlib.suppress(RequestError):
                self.watch(gate, watch)
        if self.state.installed is not None and not self.state.owned:
            with contextlib.suppress(RequestError):
                self.compare()

    # --- requests ----------------------------------------------------------------------------------------------------

    def check(self, wanted: Ruleset) -> None:
        """Dry run in the kernel of what ``apply`` would do; raises ``RequestError`` with nft's own words."""
        if wanted.backend == IPTABLES:
            self.legacy.check(wanted)
            return
        batch = decide.check_batch(self.state, wanted, self._facts(wanted))
        try:
            self.context.check(batch)
        except NftError as error:
            raise RequestError("nft-failed", f"the kernel refuses the rules: {error}") from error

    def apply(self, wanted: Ruleset) -> None:
        facts = self._facts(wanted, intact=True)
        plan = decide.apply(self.state, wanted, facts)
        try:
            self._perform(plan)
        except RequestError:
            if not decide.in_place(self.state, wanted, facts):
                raise
            self._perform(decide.apply(self.state, wanted, self._facts(wanted)))  # somebody changed what isn't owned

    def update(self, changes: Mapping[str, Change], expects: str, digest: str) -> None:
        self._perform(decide.update(self.state, changes, expects, digest))

    def remove(self, anchor: bool) -> None:
        self._perform(decide.remove(self.state, anchor, self._facts(Ruleset())))
        for gate in list(self.pidfds):
            self._retire(gate)

    def bypass(self, gate: str, reason: str) -> None:
        self._perform(decide.bypass(self.state, gate, reason, time.time()))

    def recapture(self, gate: str) -> None:
        """A process that doesn't answer stays bypassed, whoever believes it well."""
        if not (self.pulse and self.pulse.hung and gate == self.asked_gate):
            self._perform(decide.recapture(self.state, gate))

    def watch(self, gate: str, watch: Watch) -> bool:
        """Watch a process; False when it is gone already, and then the gate opens at once as if it had just died."""
        known = self.state.watches.get(gate)
        if known and gate in self.pidfds and replace(known, opens=watch.opens) == watch:
            return self._watch_on(gate, watch)
        self._retire(gate)
        self.state = self.state.with_watch(gate, watch)
        opened = processes.open_pidfd(watch.pid, watch.started)
        if opened is None:
            self.died(gate)
            return False
        self.pidfds[gate] = opened
        if watch.port:
            hung = decide.HUNG_GATE in self.state.bypasses  # found by the version of the guard before this one
            self.asked_gate, self.pulse = gate, replace(pulses.begin(time.monotonic()), hung=hung)
        return True

    def _watch_on(self, gate: str, watch: Watch) -> bool:
        """The same process under another policy: whether it hangs is known already."""
        self.state = self.state.with_watch(gate, watch)
        if self.pulse and self.pulse.hung and gate == self.asked_gate and watch.opens:
            self.bypass(gate, f"process {watch.pid} hangs")
        return True

    def unwatch(self, gate: str) -> None:
        self._retire(gate)
        self.state = self.state.without_watch(gate)

    def arm(self, seconds: float, back_to: Ruleset | None, note: dict[str, str]) -> float:
        """Start the dead-man; without ``back_to`` the way back is what is installed now. Returns the wall-clock end."""
        until = time.time() + seconds
        target = back_to if back_to is not None else self.state.installed or Ruleset()
        self._perform(decide.arm(self.state, Trial(boot_seconds() + seconds, until, target, note)))
        return until

    def confirm(self) -> bool:
        """True when a change was pending."""
        pending = self.state.trial is not None
        self._perform(decide.confirm(self.state))
        return pending

    def acknowledge(self) -> None:
        self._perform(decide.acknowledge(self.state))

    def listing(self, anchor: bool) -> str | None:
        """Our rules as nft's JSON with counters, also those in legacy tables; None when there are none."""
        if anchor:
            return self.context.table_json(ANCHOR_TABLE)
        found = None if on_legacy(self.state) else self.context.table_json(TABLE)
        return found if found is not None else self.legacy.listing()

    def verify(self) -> str:
        """``equal``, ``changed`` or ``missing``: the kernel's table against a copy of what should be there.

        The copy is made dormant (no hook sees it) under another name and removed at once, so that both are in the
        kernel's own words. 100 ms with 5,000 addresses, so only where somebody asks. Legacy tables are compared with
        what they held right after our own change.
        """
        installed, listing = self.state.installed, self.listing(anchor=False)
        if listing is None or installed is None or not installed.rules:
            return "equal" if (listing is None) == (installed is None or not installed.rules) else "missing"
        expected = self.kernel_digest if on_legacy(self.state) else self._reference()
        return "equal" if expected == readback.digest(listing) else "changed"

    def _reference(self) -> str:
        try:
            self.context.run(decide.reference_batch(self.state))
            return readback.digest(self.context.table_json(REFERENCE_TABLE) or readback.NOTHING)
        except NftError as error:
            raise RequestError("nft-failed", f"the kernel refuses a copy of the rules: {error}") from error
        finally:
            self.context.run(f"table inet {REFERENCE_TABLE}\ndelete table inet {REFERENCE_TABLE}\n")

    # --- events ------------------------------------------------------------------------------------------------------

    def died(self, gate: str) -> None:
        """The process watched for this gate has ended."""
        self._retire(gate)
        watch = self.state.watches.get(gate)
        if watch is None:
            return
        self._perform(decide.process_died(self.state, gate, watch, time.time()))
        say("watched process ended", gate=gate, pid=watch.pid, bypassed=gate in self.state.bypasses)

    def beat_in(self) -> float | None:
        """Seconds until ``beat`` should be called; None while no process is asked whether it answers."""
        return self.pulse.wake_in(time.monotonic()) if self.pulse else None

    def beat(self) -> None:
        """Ask, and judge the silence. Called after all answers that are there have been taken."""
        watch, now = self.state.watches.get(self.asked_gate), time.monotonic()
        if self.pulse is None or watch is None:
            return
        self.pulse = self.pulse.seen(now)
        if self.pulse.silent(now):
            self.pulse = self.pulse.stopped(now)
            self._perform(decide.hung(self.state, self.asked_gate, watch, time.time()))
            say("watched process hangs", gate=self.asked_gate, pid=watch.pid, bypassed=watch.opens)
        if self.pulse.wants_to_ask(now):
            self._ask(self.pulse, watch.port, now)

    def answered(self) -> None:
        """The open question was answered, by whatever means."""
        if self.pulse is None or self.probe is None:
            return
        if self.probe.refused():
            self.place += 1  # on a host with one family the listener is on the other loopback
        self._drop_probe()
        before, self.pulse = self.pulse, self.pulse.answered(time.monotonic())
        if before.hung and not self.pulse.hung:
            self._perform(decide.well(self.state, self.asked_gate))
            say("watched process answers again", gate=self.asked_gate)

    def _ask(self, pulse: Pulse, port: int, now: float) -> None:
        self._drop_probe()
        self.pulse, self.probe = pulse.asking(now), probing.ask(port, self.place)
        if self.probe is None:
            self.place += 1
            self.pulse = self.pulse.answered(now)

    def _drop_probe(self) -> None:
        if self.probe is not None:
            self.retired.append(self.probe)
            self.probe = None

    def due(self) -> float | None:
        """Seconds until the dead-man fires, 0 when it is due; None while nothing is pending."""
        return max(0.0, self.state.trial.deadline - boot_seconds()) if self.state.trial else None

    def fire(self) -> None:
        """The dead-man's time is up."""
        assert self.state.trial is not None
        facts = self._facts(self.state.trial.back_to)
        plan = decide.roll_back(self.state, "not confirmed in time", time.time(), facts)
        try:
            self._perform(plan)
        except RequestError as error:  # the old rules don't load any more: no rules at all is the safe side
            say("could not go back to the rules before, removing ours", error=error.message)
            bare = decide.bare(self.state, facts)
            undone = replace(bare.state, trial=None, rolled_back=plan.state.rolled_back)
            self._perform(replace(bare, state=undone, memory=Memory.WRITE))
        say("change rolled back", note=dict(plan.state.rolled_back.note) if plan.state.rolled_back else {})

    def rules_changed(self, pid: int, name: str, tables: Collection[str]) -> None:
        """Another program touched tables of ours: put them back."""
        installed = self.state.installed
        if installed is None or on_legacy(self.state):
            return
        facts = self._facts(installed)
        if installed.anchor and not facts.anchor_present:
            self._perform(decide.reinstall_anchor(self.state))
            facts = replace(facts, anchor_present=True)  # or the reinstall below would add its rule a second time
            self._healed(pid, name, "anchor removed")
        if self.state.owned or not installed.rules or TABLE not in tables:
            return  # the kernel lets nobody else touch an owned table
        present = self.context.exists(TABLE)
        self._perform(decide.reinstall(self.state, facts))
        self._healed(pid, name, "rules changed" if present else "table removed")

    def compare(self) -> None:
        """Announcements were lost: see in the kernel what they would have told."""
        if not on_legacy(self.state):
            self.rules_changed(0, "unknown", () if self.verify() == "equal" else {TABLE})

    def look_in(self) -> float | None:
        """Seconds until ``look`` should be called: legacy tables announce nothing. None: there is no need to."""
        return self.legacy.look_in(self.state)

    def look(self) -> None:
        """Has another program changed our rules in legacy tables? Then put them back."""
        if self.look_in() != 0.0 or not self.settled or self.state.installed is None:
            return
        try:
            if what := self.legacy.changed(self.kernel_digest):
                self._perform(decide.reinstall(self.state, self._facts(self.state.installed)))
            elif not (what := self.legacy.lead(self.state)):
                return
            self.settle()
            self._healed(*self.legacy.who(), what)
        except (LegacyError, RequestError) as error:
            say("could not look after the rules", error=str(error))

    def _healed(self, pid: int, name: str, what: str) -> None:
        self.state = decide.healed(self.state, (pid, name), what, time.time())
        say("rules changed by another program, put back", pid=pid, name=name, what=what)

    # --- acting ------------------------------------------------------------------------------------------------------

    def _perform(self, plan: Plan) -> None:
        if plan.batch or plan.legacy:
            self._act(plan)
            self.applied_at = time.time()
            self.settled = not on_legacy(plan.state)
        self.state = plan.state
        self._remember_disk(plan.memory)

    def settle(self) -> None:
        """Legacy tables announce nothing: take the reference to compare with, once things are quiet."""
        self.settled, self.kernel_digest = True, ""
        if self.look_in() is None:
            return
        try:
            self.kernel_digest = self.legacy.settle(self.state, lambda what: self._healed(*self.legacy.who(), what))
        except (LegacyError, RequestError) as error:
            say("could not read the rules back", error=str(error))

    def _act(self, plan: Plan) -> None:
        """Make before break: where the rules are to be in legacy tables those come first, else last."""
        if plan.legacy and on_legacy(plan.state):
            self.legacy.run(plan.legacy, self.state)
        try:
            if plan.batch:
                self._run(plan.batch)
        except RequestError:
            if plan.legacy and on_legacy(plan.state):
                self.legacy.back_to(self.state)
            raise
        if plan.legacy and not on_legacy(plan.state):
            self.legacy.run(plan.legacy, self.state)

    def _run(self, batch: str) -> None:
        try:
            self.context.run(batch)
        except NftError as error:
            hint = ""
            if "not permitted" in str(error):
                hint = "another process owns the table: is a second guard running in this network namespace?"
            raise RequestError("nft-failed", f"the kernel refused the rules: {error}", hint) from error

    def _remember_disk(self, action: Memory) -> None:
        try:
            if action is Memory.WRITE:
                memory.save(self.rollback_file, self.state, memory.boot_id())
            elif action is Memory.FORGET:
                memory.forget(self.rollback_file)
        except OSError as error:  # a full disk must not stop a roll-back; only the memory over a reboot is lost
            say("could not remember the roll-back on disk", error=str(error))

    def _facts(self, wanted: Ruleset, *, intact: bool = False) -> Facts:
        anchored, on_nft = self.context.exists(ANCHOR_TABLE), wanted.backend != IPTABLES
        facts = Facts(
            self.owner_supported,
            anchored,
            nft=not isinstance(self.context, NoNft),
            nft_present=on_nft or anchored or self.context.exists(TABLE),
            legacy_present=self.legacy.present,
            intact=intact,
        )
        stays = not on_nft or decide.in_place(self.state, wanted, facts)
        return facts if stays else replace(facts, carried=self._carried(wanted))

    def _carried(self, wanted: Ruleset) -> str:
        """Read just before the replacement; what is counted in the millisecond between is lost."""
        before = self.state.installed
        if not wanted.rules or before is None:
            return ""
        names = tuple(name for name in wanted.carry if name in before.carry)
        listings = [self.context.set_json(TABLE, name) for name in names]
        found: dict[str, list[readback.Element]] = {}
        for listing in listings:
            found |= readback.dynamic_elements(listing, names) if listing else {}
        return decide.carried_lines(found)

    def _probe_owner(self) -> bool:
        """Kernels before 5.12 refuse the flag; a dry run changes nothing."""
        with contextlib.suppress(NftError):
            self.context.check("table inet meshagent_probe { flags owner; }\n")
            return True
        return False

    def _retire(self, gate: str) -> None:
        """Nobody waits for this process any more; if it hung, that is over, and its successor is asked."""
        if gate in self.pidfds:
            self.retired.append(self.pidfds.pop(gate))
        if gate == self.asked_gate and self.pulse is not None:
            was_hung, self.pulse = self.pulse.hung, None
            self._drop_probe()
            if was_hung:
                self._perform(decide.recapture(self.state, decide.HUNG_GATE))

    def describe(self) -> dict[str, object]:
        """The answer to ``state``; times are seconds since the epoch."""
        state, installed = self.state, self.state.installed
        return {
            "pid": os.getpid(),
            "version": __version__,
            "started_at": self.started_at,
            "owner_supported": self.owner_supported,
            "installed": installed is not None and bool(installed.rules),
            "owned": state.owned,
            "digest": installed.digest if installed else "",
            "applied_at": self.applied_at,
            "kernel_digest": self.kernel_digest,
            "backend": installed.backend if installed else "",
            "contested": self.legacy.contested,
            "anchor": self.context.exists(ANCHOR_TABLE) or self.legacy.present,
            "bypasses": {
                gate: {"since_at": value.since_at, "reason": value.reason} for gate, value in state.bypasses.items()
            },
            "watches": {
                gate: {"pid": watch.pid, "opens": watch.opens, "port": watch.port}
                for gate, watch in state.watches.items()
            },
            "hangs": state.hangs,
            "pending": {"until_at": state.trial.until_at, "note": dict(state.trial.note)} if state.trial else None,
            "rolled_back": (
                {"at": state.rolled_back.at, "reason": state.rolled_back.reason, "note": dict(state.rolled_back.note)}
                if state.rolled_back
                else None
            ),
            "heals": state.heals,
            "last_heal": (
                {"at": heal.at, "pid": heal.pid, "name": heal.name, "what": heal.what}
                if (heal := state.last_heal)
                else None
            ),
        }
