"""The story from beginning to end, and its end in every case: everything is removed unless it should be kept."""

from collections.abc import Callable
from typing import Any

from meshagent.demo import access, away, crash, giveback, held, join, literal, lookaround, wire
from meshagent.demo.interrupts import Interrupts, listening
from meshagent.demo.narrator import Narrator, StepResult
from meshagent.demo.world import World, build
from meshagent.lab import Lab, sweep
from meshagent.model.errors import MeshagentError

Step = tuple[str, str, Callable[[World, StepResult], None]]

STEPS: tuple[Step, ...] = (
    ("hub", "a control plane in a host of its own", join.hub),
    ("enroll", "three legacy hosts join by one line each", join.enroll),
    ("retrofit", "Redis traffic becomes mutual TLS, Redis and its client untouched", wire.retrofit),
    ("names", "MariaDB by name, no address in any configuration", access.names),
    ("hard-coded-ip", "a database moved, its old machine is gone, its client doesn't notice", literal.hard_coded_ip),
    ("open-connection", "connections older than the mesh stay what they were", held.open_connections),
    ("envoy-killed", "a proxy dies: back at once, and what went around it is counted", crash.envoy_killed),
    ("hub-away", "the control plane dies: everything goes on, even restarts", away.hub_away),
    ("outsider", "a host outside the mesh: counted, then refused", access.outsider),
    ("leave", "every host is given back as it was", giveback.leave),
)


def tell_story(quiet: bool, keep: bool) -> dict[str, Any]:
    """Run the demo; returns the contract's JSON shape. ``KeyboardInterrupt`` (any polite end) passes, cleaned up."""
    tell = Narrator(quiet)
    with listening() as interrupts:
        for name in sweep(kept=True):
            tell.say(f"removed what an earlier run left: {name}")
        tell.say("building six hosts as network namespaces: hub, web (nginx), cache (Redis), db and olddb (MariaDB),")
        tell.say("outsider; three connections from web to Redis are opened now and watched to the end")
        lab = Lab(families=(4, 6), adopt=not keep)
        try:
            with lab:
                _play(lab, tell, keep, interrupts)
        except KeyboardInterrupt:
            lab.close()  # again: the first time may have been interrupted before it began
            raise
    return tell.as_dict()


def _play(lab: Lab, tell: Narrator, keep: bool, interrupts: Interrupts) -> None:
    world = None
    try:
        world = build(lab, tell, interrupts.check)
        world.connections = held.hold(world)
        told = STEPS[:-1] if keep else STEPS
        for number, (name, title, step) in enumerate(told, 1):
            interrupts.check()
            with tell.step(f"{number}/{len(told)}", name, title) as result:
                step(world, result)
    except (MeshagentError, OSError) as error:
        interrupts.check()
        _failed(tell, error)
    finally:
        if world is not None and world.connections is not None:
            world.connections.stop()
    if keep and world is not None:
        lookaround.tell(tell, lab.keep(), world.db.address)


def _failed(tell: Narrator, error: MeshagentError | OSError) -> None:
    """A failure outside any step becomes a result of its own: the outcome must never look like success."""
    why = error.message if isinstance(error, MeshagentError) else f"{type(error).__name__}: {error}"
    if not tell.results or tell.results[-1].ok:
        tell.results.append(StepResult("setup", False, why))
    tell.say(f"\nstopped: {why}")
