"""Performs what decide.py plans: the one place where the guard touches kernel, disk and other processes.

One thread, no locks: requests, timers and events come one after the other from loop.py.
"""

import contextlib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from meshagent.guard import decide, held, memory, readback
from meshagent.guard.backends import Nft, NoNft
from meshagent.guard.elements import Change
from meshagent.guard.installing import Facts, Memory, Plan
from meshagent.guard.legacy import LegacyError
from meshagent.guard.legacy_side import LegacySide, on_legacy
from meshagent.guard.libnftables import NftError
from meshagent.guard.log import say
from meshagent.guard.nftquery import OWNER, PERSIST
from meshagent.guard.state import IPTABLES, Ruleset, State, Trial
from meshagent.guard.succession import Estate
from meshagent.guard.tables import Tables
from meshagent.guard.watching import Watching
from meshagent.guard.wire import RequestError
from meshagent.model.marks import ANCHOR_TABLE, TABLE


def boot_seconds() -> float:
    """Seconds since boot, also while suspended: a dead-man must not wait for a laptop's lid."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class Guard:
    """The state and the things it acts on. ``without`` names what not to use though the kernel has it (tables.py)."""

    context: Nft
    rollback_file: Path
    held_file: Path
    without: Collection[str] = ()
    state: State = field(default_factory=State)
    started_at: float = field(default_factory=time.time)
    applied_at: float = 0.0
    kernel_digest: str = ""
    settled: bool = True
    legacy: LegacySide = field(default_factory=LegacySide)

    def __post_init__(self) -> None:
        self.tables, self.watching = Tables(self.context), Watching(self)
        self._saved: State | None = None

    def start(self) -> None:
        """Probe the kernel and pick up what an earlier guard remembered, and what it left in the kernel."""
        self._probe()
        remembered, boot = memory.load(self.rollback_file)
        if (found := self._left_behind()) is not None:
            self.state = replace(found, trial=remembered.trial, rolled_back=remembered.rolled_back)
            say("going on where the guard before was killed", owned=found.owned)
            self.resume()
            return
        plan = decide.after_start(remembered, memory.boot_id(), boot, time.time())
        self.perform(plan)
        if plan.memory is Memory.WRITE:
            say("a change was not confirmed before the guard ended", reason=plan.state.rolled_back)

    def _left_behind(self) -> State | None:
        """The state of a guard that was killed, if the kernel still holds just that; its table is taken over."""
        before, flags = held.load(self.held_file, memory.boot_id()), self.tables.flags
        if flags is None or flags & OWNER:
            return None
        kept = bool(flags & PERSIST)
        try:
            if kept:
                self.tables.keep()
            self.state = replace(before or State(), owned=kept, kept=kept)
            if before is not None and self.verify() == "equal":
                return self.state
        except (RequestError, NftError) as error:
            say("what the guard before left can't be judged", error=str(error))
        self.state = State()
        return None

    def follow(self, estate: Estate) -> None:
        """Go on where the guard before left; the kernel holds what it left."""
        self.state, self.started_at = estate.state, estate.started_at
        self._probe()
        self.settled = not on_legacy(self.state)

    def _probe(self) -> None:
        self.tables.probe(self.without)
        self.legacy.find(needed=isinstance(self.context, NoNft))

    def resume(self) -> None:
        """What happened while nobody looked: processes that ended, rules that others touched."""
        for gate, watch in dict(self.state.watches).items():
            self.state = self.state.without_watch(gate)
            with contextlib.suppress(RequestError):
                self.watching.watch(gate, watch)
        if self.state.installed is not None and not self.state.owned:
            with contextlib.suppress(RequestError):
                self.compare()
                self.perform(decide.reheld(self.state, self._facts(self.state.installed)))

    @property
    def unwritten(self) -> bool:
        """Whether something is known that the file for the next guard doesn't say."""
        return self.state is not self._saved

    def remember(self) -> None:
        """Leave what is known for a guard that may have to follow unprepared; called when there is time."""
        self._saved = self.state
        try:
            held.save(self.held_file, self.state, memory.boot_id())
        except OSError as error:
            say("could not write down what is held", error=str(error))

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
            self.perform(plan)
        except RequestError:
            if not decide.in_place(self.state, wanted, facts):
                raise
            again = self._facts(wanted, intact=False)
            self.perform(decide.apply(self.state, wanted, again))  # somebody changed what isn't owned

    def update(self, changes: Mapping[str, Change], expects: str, digest: str) -> None:
        self.perform(decide.update(self.state, changes, expects, digest))

    def remove(self, anchor: bool) -> None:
        self.perform(decide.remove(self.state, anchor, self._facts(Ruleset())))
        for gate in list(self.watching.pidfds):
            self.watching.retire(gate)

    def bypass(self, gate: str, reason: str) -> None:
        self.perform(decide.bypass(self.state, gate, reason, time.time()))

    def recapture(self, gate: str) -> None:
        """A process that doesn't answer stays bypassed, whoever believes it well."""
        if not self.watching.hangs(gate):
            proxy = gate == decide.PROXY_GATE
            self.perform(decide.well(self.state, gate) if proxy else decide.recapture(self.state, gate))

    def arm(self, seconds: float, back_to: Ruleset | None, note: dict[str, str]) -> float:
        """Start the dead-man; without ``back_to`` the way back is what is installed now. Returns the wall-clock end."""
        until = time.time() + seconds
        target = back_to if back_to is not None else self.state.installed or Ruleset()
        self.perform(decide.arm(self.state, Trial(boot_seconds() + seconds, until, target, note)))
        return until

    def confirm(self) -> bool:
        """True when a change was pending."""
        pending = self.state.trial is not None
        self.perform(decide.confirm(self.state))
        return pending

    def acknowledge(self) -> None:
        self.perform(decide.acknowledge(self.state))

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
        expected = self.kernel_digest if on_legacy(self.state) else self.tables.reference(self.state)
        return "equal" if expected == readback.digest(listing) else "changed"

    # --- events ------------------------------------------------------------------------------------------------------

    def due(self) -> float | None:
        """Seconds until the dead-man fires, 0 when it is due; None while nothing is pending."""
        return max(0.0, self.state.trial.deadline - boot_seconds()) if self.state.trial else None

    def fire(self) -> None:
        """The dead-man's time is up."""
        assert self.state.trial is not None
        facts = self._facts(self.state.trial.back_to)
        plan = decide.roll_back(self.state, "not confirmed in time", time.time(), facts)
        try:
            self.perform(plan)
        except RequestError as error:  # the old rules don't load any more: no rules at all is the safe side
            say("could not go back to the rules before, removing ours", error=error.message)
            bare = decide.bare(self.state, facts)
            undone = replace(bare.state, trial=None, rolled_back=plan.state.rolled_back)
            self.perform(replace(bare, state=undone, memory=Memory.WRITE))
        say("change rolled back", note=dict(plan.state.rolled_back.note) if plan.state.rolled_back else {})

    def rules_changed(self, pid: int, name: str, tables: Collection[str]) -> None:
        """Another program touched tables of ours: put them back."""
        installed = self.state.installed
        if installed is None or on_legacy(self.state):
            return
        facts = self._facts(installed)
        if installed.anchor and not facts.anchor_present:
            self.perform(decide.reinstall_anchor(self.state))
            facts = replace(facts, anchor_present=True)  # or the reinstall below would add its rule a second time
            self._healed(pid, name, "anchor removed")
        if self.state.owned or not installed.rules or TABLE not in tables:
            return  # the kernel lets nobody else touch an owned table
        present = self.context.exists(TABLE)
        self.perform(decide.reinstall(self.state, facts))
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
                self.perform(decide.reinstall(self.state, self._facts(self.state.installed)))
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

    def perform(self, plan: Plan) -> None:
        """Bring a plan into the kernel; the state follows when that was done. Raises ``RequestError``."""
        if plan.batch or plan.changes or plan.legacy:
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
            if plan.batch or plan.changes:
                self.tables.run(plan)
        except RequestError:
            if plan.legacy and on_legacy(plan.state):
                self.legacy.back_to(self.state)
            raise
        if plan.legacy and not on_legacy(plan.state):
            self.legacy.run(plan.legacy, self.state)

    def _remember_disk(self, action: Memory) -> None:
        try:
            if action is Memory.WRITE:
                memory.save(self.rollback_file, self.state, memory.boot_id())
            elif action is Memory.FORGET:
                memory.forget(self.rollback_file)
        except OSError as error:  # a full disk must not stop a roll-back; only the memory over a reboot is lost
            say("could not remember the roll-back on disk", error=str(error))

    def _facts(self, wanted: Ruleset, *, intact: bool | None = None) -> Facts:
        """``intact`` unless told otherwise: what nobody else can touch is as it was made."""
        intact = self.state.kept if intact is None else intact
        return self.tables.facts(self.state, wanted, legacy=self.legacy.present, intact=intact)
