"""Legacy iptables for the guard: the kernel's tables by the programs that own their format, one child at a time.

Without a shell, found on a fixed path, with a bound on their time: whoever holds xtables.lock for long, or a child that
hangs, costs an error, never the guard. Replacing reads what is there, writes only what differs, and tries again when
another program was faster.
"""

import os
import subprocess
import time
from pathlib import Path

from meshagent.guard import legacy_listing, legacy_text
from meshagent.guard.legacy_text import Tables
from meshagent.guard.xtables import Xtables, XtablesError, open_families

_DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/local/sbin")
_WORDS = {4: "iptables", 6: "ip6tables"}
#: Less than a client of the guard waits for its answer, so that it hears why.
_LOCK_SECONDS = 3
_LOCK_HELD = 4  # exit status RESOURCE_PROBLEM
#: A child that waited for the lock in vain has answered by then.
_CHILD_SECONDS = _LOCK_SECONDS + 1.0
#: Another program may change a table between our look and our write; it rarely does twice.
_TRIES = 4
_RECENT = Path("/proc/self/net/xt_recent")
_TIMERS = Path("/proc/timer_list")


_ALONE = ("/usr/bin/unshare", "--net")
_ZONE_PROBE = "*raw\n-A OUTPUT -j CT --zone-orig 1\nCOMMIT\n"


class LegacyError(Exception):
    """Legacy iptables can't be used here, or refused; the text is for a person."""


class LegacyBusyError(LegacyError):
    """Trying again at once would only wait again: another program holds the lock, or a child hung."""


class Legacy:
    """The kernel's legacy tables of this network namespace. Raises ``LegacyError``. Not thread-safe."""

    def __init__(self) -> None:
        self.wrote = False  # since the last ``hold`` began
        try:
            self._families = open_families()
        except XtablesError as error:
            raise LegacyError(str(error)) from error
        try:
            self._restore = {each.family: find_program(_WORDS[each.family], "restore") for each in self._families}
            self._save = {each.family: find_program(_WORDS[each.family], "save") for each in self._families}
            self.zones = self._has_zones()
        except LegacyError:
            self.close()
            raise

    def _has_zones(self) -> bool:
        """Whether the kernel knows conntrack zones: seen in a network namespace of its own, so that nothing changes.

        Without them rules that ask for one are left out: a stale entry of a captured connection may then catch a
        connection of the proxy, and an open flow of DNS stays where it was when capture goes on or off.
        """
        family = self._families[0].family
        try:
            _run([*_ALONE, self._restore[family], "--noflush"], _ZONE_PROBE)
        except LegacyError as error:
            return "unshare" in str(error)  # no namespaces here: whoever has none has zones
        return True

    def close(self) -> None:
        for each in self._families:
            each.close()

    # --- looking -----------------------------------------------------------------------------------------------------

    def read(self) -> dict[int, Tables]:
        """What is ours in the kernel now, with counters."""
        return {each.family: self._read(each) for each in self._families}

    def present(self) -> bool:
        """Whether anything of ours is there."""
        return any(self.read().values())

    def fingerprint(self) -> bytes:
        """Cheap: changes when anybody adds or removes a rule in any table."""
        return b"".join(each.fingerprint() for each in self._families)

    def listing(self, found: dict[int, Tables] | None = None) -> str | None:
        """Our rules as JSON in the shape of libnftables, callers included; None when there are none."""
        jiffies = _jiffies()
        hertz = legacy_listing.hertz(jiffies, time.monotonic()) if jiffies else 0
        return legacy_listing.listing(self.read() if found is None else found, _recent(), jiffies, hertz)

    def holds(self, found: dict[int, Tables], *texts: str) -> bool:
        """Whether all of our texts are in what was read."""
        return all(legacy_text.holds(found[family], tables) for family, tables in self._wanted(*texts).items())

    def is_exactly(self, found: dict[int, Tables], *texts: str) -> bool:
        """Whether what was read is all of our texts, word for word; never so where iptables-save has other words."""
        wanted = self._wanted(*texts)
        return not any(
            legacy_text.transition(found[family], _with_anchor(tables, found[family]))
            for family, tables in wanted.items()
        )

    # --- changing ----------------------------------------------------------------------------------------------------

    def check(self, *texts: str) -> None:
        """Let the programs judge texts of ours; the kernel's tables don't change."""
        for family, tables in self._wanted(*texts).items():
            if text := legacy_text.transition({}, tables):
                self._write(family, text, "--test")

    def hold(self, *texts: str, keep_anchor: bool = True, lead: bool = False) -> None:
        """Make our part of the tables exactly these texts (none: nothing of ours), whatever is there now.

        Atomic for each table of each family. ``keep_anchor``: the chain that keeps connections alive stays.
        ``lead``: our jumps go before rules that others have put before them.
        """
        wanted = self._wanted(*texts)
        self.wrote = False
        for attempt in range(_TRIES):
            try:
                for each in self._families:
                    self._converge(each, wanted[each.family], keep_anchor, lead)
                return
            except LegacyBusyError:
                raise
            except LegacyError:
                if attempt == _TRIES - 1:
                    raise

    def flip(self, text: str) -> None:
        """Give some of our chains other rules, nothing else; each family in one child."""
        for family, part in legacy_text.parts(text).items():
            if family in self._restore:  # what leads to a zone is a jump: it may lead to an empty chain
                self._write(family, part)

    def _converge(self, each: Xtables, want: Tables, keep_anchor: bool, lead: bool) -> None:
        have = self._read(each)
        want = _with_anchor(want, have) if keep_anchor else want
        if text := legacy_text.transition(have, want, lead=lead):
            self._write(each.family, text)
            self.wrote = True

    def _wanted(self, *texts: str) -> dict[int, Tables]:
        wanted = {family: tables for family, tables in legacy_text.merged(*texts).items() if family in self._restore}
        return wanted if self.zones else {family: legacy_text.without_zones(found) for family, found in wanted.items()}

    def _read(self, each: Xtables) -> Tables:
        if not each.tables():  # nobody uses legacy tables here, and looking must not make them
            return {}
        return legacy_text.parse(_run([self._save[each.family], "-c"]))

    def _write(self, family: int, text: str, *options: str) -> None:
        argv = [self._restore[family], "--noflush", "--counters", "-w", str(_LOCK_SECONDS), *options]
        try:
            _run(argv, text)
        except LegacyBusyError:
            raise
        except LegacyError as error:
            raise LegacyError(_with_line(str(error), text)) from error


def _with_anchor(want: Tables, have: Tables) -> Tables:
    """The chain that keeps connections alive stays as it is where nothing else is wanted of it."""
    anchor = have["nat"].chains.get(legacy_text.ANCHOR_CHAIN) if "nat" in have else None
    if anchor is None:
        return want
    nat = want.get("nat", legacy_text.Table())
    return {**want, "nat": legacy_text.Table({legacy_text.ANCHOR_CHAIN: anchor} | nat.chains, nat.jumps)}


def find_program(word: str, verb: str) -> str:
    """The path of ``iptables-legacy-restore`` or its like; ``iptables-restore`` where that is the legacy one."""
    for directory in _DIRECTORIES:
        path = f"{directory}/{word}-legacy-{verb}"
        if os.access(path, os.X_OK):
            return path
    for directory in _DIRECTORIES:
        path = f"{directory}/{word}-{verb}"
        if os.access(path, os.X_OK) and "nf_tables" not in _run([f"{directory}/{word}", "--version"]):
            return path
    raise LegacyError(f"{word}-legacy-{verb} is not installed")


def _run(argv: list[str], text: str = "") -> str:
    name = Path(argv[0]).name
    try:
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
            timeout=_CHILD_SECONDS,
            env={"PATH": ":".join(_DIRECTORIES), "LC_ALL": "C"},
            cwd="/",
        )
    except subprocess.TimeoutExpired as error:
        raise LegacyBusyError(f"{name} didn't end in {_CHILD_SECONDS:.0f} s and was killed") from error
    except OSError as error:
        raise LegacyError(f"{name} could not be run: {error.strerror}") from error
    if done.returncode:
        if done.returncode == _LOCK_HELD:
            raise LegacyBusyError(f"{name} waited {_LOCK_SECONDS} s for xtables.lock: another program holds it")
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise LegacyError(lines[0] if lines else f"{name} failed with status {done.returncode}")
    return done.stdout


def _with_line(error: str, text: str) -> str:
    """``line 7 failed`` says nothing to a person who doesn't have the text."""
    number = error.partition("line ")[2].split(" ")[0].rstrip(":")
    lines = text.splitlines()
    if number.isdigit() and 0 < int(number) <= len(lines):
        return f"{error} ({lines[int(number) - 1][:200]})"
    return error


def _recent() -> dict[str, str]:
    try:
        return {path.name: path.read_text() for path in sorted(_RECENT.glob("meshagent_*"))}
    except OSError:
        return {}


def _jiffies() -> int:
    """The kernel's clock that lists of callers use; 0 where it can't be read, then nobody is called idle."""
    try:
        with _TIMERS.open() as lines:
            return next((int(line.split(":")[1]) for line in lines if line.startswith("jiffies:")), 0)
    except (OSError, ValueError):
        return 0
