"""System users and groups: made where they are missing, removed again by who made them.

The numeric ids are what callers keep: name services may hang at boot.
"""

import grp
import os
import pwd
from dataclasses import dataclass

from meshagent.machine import process
from meshagent.model.errors import MeshagentError


@dataclass(frozen=True, slots=True)
class Account:
    """A user's numeric ids; ``created`` tells whether this call made it (then leaving removes it)."""

    name: str
    uid: int
    gid: int
    created: bool = False


def require_root(doing: str) -> None:
    """Raises ``MeshagentError`` (exit 1) unless root. ``doing`` begins the sentence: "enrolling"."""
    if os.geteuid() != 0:
        raise MeshagentError("not-root", f"{doing} needs root", hint="run it as root, for example with sudo")


def find_user(name: str) -> Account | None:
    """The user of that name, or None."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name, found.pw_uid, found.pw_gid)


def ensure_user(name: str) -> Account:
    """The system user of that name, made with a group of its own when missing: no home, no login, no password.

    Raises ``MeshagentError``.
    """
    found = find_user(name)
    if found:
        return found
    group = "--gid" if _group_id(name) is not None else "--user-group"
    argv = ["useradd", "--system", "--no-log-init", "--no-create-home", "--home-dir", "/nonexistent"]
    argv += ["--shell", "/usr/sbin/nologin", *([group, name] if group == "--gid" else [group]), name]
    process.run(argv, timeout=30)
    made = find_user(name)
    if made is None:
        raise MeshagentError("no-user", f"useradd made no user {name}", hint="see getent passwd and nsswitch.conf")
    return Account(made.name, made.uid, made.gid, created=True)


def remove_user(name: str) -> None:
    """Remove the user and the group of its own; harmless when there is none. Raises ``MeshagentError``.

    The caller has made sure that nothing runs as this user: userdel(8) by itself looks at all processes of the machine
    by number, and would take one of a container with a user database of its own for one of ours.
    """
    if find_user(name):
        process.run(["userdel", "--force", name], timeout=30)
    remove_group(name)


def ensure_group(name: str) -> tuple[int, bool]:
    """The group's id and whether this call made it. Raises ``MeshagentError``."""
    found = _group_id(name)
    if found is not None:
        return found, False
    process.run(["groupadd", "--system", name], timeout=30)
    made = _group_id(name)
    if made is None:
        raise MeshagentError("no-group", f"groupadd made no group {name}", hint="see getent group and nsswitch.conf")
    return made, True


def remove_group(name: str) -> None:
    """Remove the group; harmless when there is none. Raises ``MeshagentError``."""
    if _group_id(name) is not None:
        process.run(["groupdel", name], timeout=30)


def _group_id(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
