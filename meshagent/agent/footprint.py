"""What this host has because of us, written down before it is made, so that ``leave`` can give the host back.

Ownership decides what is removed, never today's configuration. One state file, format 1; a record of something that
was in the end not made is harmless, a thing made without a record would stay.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from meshagent.machine import files, state
from meshagent.model.errors import MeshagentError
from meshagent.model.paths import Paths

_FORMAT = 1
#: Ends the name under which the state directory comes and goes.
_STAGE = ".meshagent-new"

#: The system user that Envoy runs as.
PROXY_USER = "meshagent-proxy"


@dataclass(frozen=True, slots=True)
class Footprint:
    """``directories`` that did not exist before, outermost first; ``config_digest`` of an agent.yaml that we wrote.

    ``user_created``: no user of the proxy's name existed. ``uid``/``gid`` are the proxy's, -1 before it is made;
    numbers, because name services may hang at boot.
    """

    directories: tuple[str, ...] = ()
    user_created: bool = False
    config_created: bool = False
    uid: int = -1
    gid: int = -1


def load(paths: Paths) -> Footprint | None:
    """None when there is none. Raises ``MeshagentError`` when it is damaged: guessing could remove what isn't ours."""
    found = state.read_state(paths.footprint, format=_FORMAT, precious=True)
    if found.problem:
        raise MeshagentError("footprint-damaged", found.problem, hint="restore it from a backup, then leave again")
    if found.data is None:
        return None
    return Footprint(**{**found.data, "directories": tuple(found.data["directories"])})


def save(paths: Paths, footprint: Footprint) -> None:
    """Write the record durably."""
    state.write_state(paths.footprint, asdict(footprint), format=_FORMAT)


def begin(paths: Paths, user_exists: bool, config_exists: bool) -> Footprint:
    """The record of a host that is about to join; an earlier, interrupted try's record stays what it was."""
    earlier = load(paths)
    if earlier is not None:
        return earlier
    forget_torn_start(paths)
    made = _missing(paths.etc, paths.services_dir, paths.state, paths.run, paths.proxy_dir)
    footprint = Footprint(directories=made, user_created=not user_exists, config_created=not config_exists)
    if paths.state.exists():
        files.make_dir(paths.state, mode=0o700)
        save(paths, footprint)
    else:
        _appear(paths, footprint)
    return footprint


def forget_torn_start(paths: Paths) -> None:
    """Remove what a first step that was interrupted left; harmless when there is nothing."""
    if not paths.state.exists():
        files.remove_tree(_staged(paths)[1])


def _appear(paths: Paths, footprint: Footprint) -> None:
    """The state directory comes into being with the record in it, in one step: never a directory that nobody owns."""
    top, stage = _staged(paths)
    state_dir = stage / paths.state.relative_to(top)
    files.make_dir(state_dir, mode=0o700)
    state.write_state(state_dir / paths.footprint.name, asdict(footprint), format=_FORMAT)
    with files.explained(f"make the directory {top}", top):
        stage.rename(top)
        files.sync_dir(top.parent)


def disappear(paths: Paths, footprint: Footprint | None) -> None:
    """The state directory goes with the record in it, in one step, and with it parents that were made for it alone.

    A directory that was there before stays; then its content goes, the record last.
    """
    made = footprint.directories if footprint else ()
    if str(paths.state) not in made:
        for child in sorted(paths.state.iterdir(), key=lambda child: child == paths.footprint):
            files.remove_tree(child, wiped=True) if child.is_dir() else files.wipe(child)
        return
    top = paths.state
    while str(top.parent) in made and len(list(top.parent.iterdir())) == 1:
        top = top.parent
    stage = top.with_name(f".{top.name}{_STAGE}")
    with files.explained(f"remove {top}", top):
        top.rename(stage)
    files.remove_tree(stage, wiped=True)


def _staged(paths: Paths) -> tuple[Path, Path]:
    """The outermost missing directory of the state directory's path, and the name it is made under."""
    top = paths.state
    while not top.parent.exists():
        top = top.parent
    return top, top.with_name(f".{top.name}{_STAGE}")


def with_account(paths: Paths, footprint: Footprint, uid: int, gid: int) -> Footprint:
    """The record with the proxy's numeric ids."""
    known = replace(footprint, uid=uid, gid=gid)
    save(paths, known)
    return known


def _missing(*wanted: Path) -> tuple[str, ...]:
    """Directories that do not exist now, with their missing parents, outermost first."""
    found: dict[str, None] = {}
    for path in wanted:
        for each in (*reversed(path.parents), path):
            if not each.exists():
                found[str(each)] = None
    return tuple(found)
