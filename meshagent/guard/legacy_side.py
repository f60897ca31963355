"""The guard's hold on legacy tables: opened when needed, changed by plans, looked after because they announce nothing.

Where no legacy tables are used nothing is asked and no child runs.
"""

import contextlib
import time
from collections.abc import Callable

from meshagent.guard import decide, legacy_text, readback, xtables
from meshagent.guard.decide import LegacyChange
from meshagent.guard.legacy import Legacy, LegacyError
from meshagent.guard.legacy_lock import LockWatch, User
from meshagent.guard.legacy_order import Contest
from meshagent.guard.legacy_text import Tables
from meshagent.guard.state import IPTABLES, Ruleset, State
from meshagent.guard.wire import RequestError

#: How often the tables are looked at (0.2 ms each time), and how often their text is read (5 ms).
_LOOK_SECONDS = 0.25
_THOROUGH_SECONDS = 5.0
#: A script calls iptables again and again, often without waiting for the lock: whoever put rules back in between would
#: make it fail. So it is given this long to come to its end, and no longer than the second.
_QUIET_SECONDS, _PATIENCE_SECONDS = 0.1, 0.5
#: Whoever used iptables longer ago than this isn't taken for the one that changed the rules.
_SUSPECT_SECONDS = 30.0


def on_legacy(state: State) -> bool:
    """Whether the rules that are installed are those of legacy tables."""
    return state.installed is not None and state.installed.backend == IPTABLES


class LegacySide:
    """``present``: something of ours is in legacy tables, of whichever guard. Methods raise ``RequestError``."""

    def __init__(self) -> None:
        self.present = False
        self.lock: LockWatch | None = None
        self._legacy: Legacy | None = None
        self._fingerprint, self._looked = b"", 0.0
        self._used, self._busy_since, self._seen = 0.0, 0.0, 0.0
        self._user: User | None = None
        self._overtaken, self._contest = False, Contest()
        self._texts: object = None  # of what was installed, as the kernel says it

    def find(self, *, needed: bool) -> None:
        """Rules of an earlier guard may be in tables that nobody else uses any more."""
        if needed or xtables.in_use():
            with contextlib.suppress(RequestError, LegacyError):
                self.present = self._open().present()

    def check(self, wanted: Ruleset) -> None:
        """Let the programs judge rules; nothing changes."""
        try:
            self._open().check(wanted.table, wanted.anchor)
        except LegacyError as error:
            raise RequestError("iptables-failed", f"the rules are refused: {error}") from error

    def listing(self) -> str | None:
        try:
            return self._legacy.listing() if self._legacy and self.present else None
        except LegacyError as error:
            raise RequestError("iptables-failed", f"the rules can't be read: {error}") from error

    def run(self, change: LegacyChange, before: State) -> None:
        """Half done is undone: tables and families change one after the other."""
        if self._legacy is None and not change.texts and not change.flip:
            return  # nothing of ours can be there
        legacy = self._open()
        try:
            if change.flip:
                legacy.flip(change.flip)
                return
            legacy.hold(*change.texts, keep_anchor=change.keep_anchor)
            self.present = bool(change.texts) or (change.keep_anchor and legacy.present())
        except LegacyError as error:
            if legacy.wrote or change.flip:
                self.back_to(before)
            raise RequestError("iptables-failed", f"the kernel refused the rules: {error}") from error

    def back_to(self, state: State) -> None:
        """As well as it goes: what was there before a change that failed."""
        with contextlib.suppress(LegacyError, RequestError):
            self._open().hold(*decide.legacy_texts(state))

    # --- following ---------------------------------------------------------------------------------------------------

    @property
    def contested(self) -> bool:
        """Whether another program insists on having its rules before ours."""
        return self._contest.contested(time.monotonic())

    def used(self) -> None:
        """Somebody opened the lock of iptables: remember who, and look once it is quiet."""
        opened, user = self.lock.read() if self.lock else (False, None)
        self._suspect(user)
        if opened:
            self._used = time.monotonic()
            self._busy_since = self._busy_since or self._used

    def look_in(self, state: State) -> float | None:
        """Seconds until the next look; None where there is nothing to look after."""
        if not on_legacy(state) or not decide.legacy_texts(state):
            return None
        due = self._looked + _LOOK_SECONDS
        if self._busy_since:
            due = min(self._used + _QUIET_SECONDS, self._busy_since + _PATIENCE_SECONDS)
        return max(0.0, due - time.monotonic())

    def changed(self, expected: str) -> str:
        """What another program did to our rules since the last look; empty for nothing. ``expected``: their digest."""
        now = time.monotonic()
        thorough, self._looked = now // _THOROUGH_SECONDS != self._looked // _THOROUGH_SECONDS, now
        self._busy_since = 0.0
        legacy = self._open()
        fingerprint = legacy.fingerprint()
        if fingerprint == self._fingerprint and not thorough:
            return ""
        self._fingerprint, found = fingerprint, legacy.read()
        self._note_place(found)
        if self.present and self._texts == legacy_text.texts(found):
            return ""  # asked for every 5 s: 0.3 ms for 5,000 addresses, a digest of their listing 130 ms
        listing = legacy.listing(found) if self.present else None
        if listing is not None and readback.digest(listing) == expected:
            return ""
        return "rules changed" if listing else "rules removed"

    def lead(self, state: State) -> str:
        """Go before rules that others have put before ours, unless that would become a fight; says what they did."""
        now = time.monotonic()
        if not self._overtaken or self._contest.wait(now):
            return ""
        self._contest = self._contest.moved(now)
        self._open().hold(*decide.legacy_texts(state), lead=True)
        return "rules put before ours"

    def settle(self, state: State, tell: Callable[[str], None]) -> str:
        """The digest of what was installed. What another program changed since then is put back first.

        Where iptables-save has other words than ours, nothing but the number of rules can tell that something changed:
        then all is written once more, and what is there right after it is what we meant.
        """
        legacy, texts = self._open(), decide.legacy_texts(state)
        try:
            self._fingerprint, found = legacy.fingerprint(), legacy.read()
            if not legacy.is_exactly(found, *texts):
                complete = legacy.holds(found, *texts)
                legacy.hold(*texts)
                self._fingerprint, found = legacy.fingerprint(), legacy.read()
                if not complete or legacy.is_exactly(found, *texts):
                    tell("rules changed")
            self._note_place(found)
            self._texts = legacy_text.texts(found)
            self._follow_lock()
            return readback.digest(legacy.listing(found) or readback.NOTHING)
        except LegacyError as error:
            raise RequestError("iptables-failed", f"the rules can't be read back: {error}") from error

    def who(self) -> tuple[int, str]:
        """The program that used iptables last, where it was seen; it is told once."""
        user, self._user = self._user, None
        recent = time.monotonic() - self._seen < _SUSPECT_SECONDS
        return (user.pid, user.name) if user and recent else (0, "unknown")

    def _note_place(self, found: dict[int, Tables]) -> None:
        self._overtaken = not all(map(legacy_text.placed, found.values()))

    def _follow_lock(self) -> None:
        """Without inotify nobody is known by name, and everything else works."""
        with contextlib.suppress(OSError):
            self.lock = self.lock or LockWatch()
            self._suspect(self.lock.follow())

    def _suspect(self, user: User | None) -> None:
        if user is not None:
            self._user, self._seen = user, time.monotonic()

    def _open(self) -> Legacy:
        if self._legacy is None:
            try:
                self._legacy = Legacy()
            except LegacyError as error:
                raise RequestError("iptables-failed", f"legacy iptables can't be used here: {error}") from error
        return self._legacy
