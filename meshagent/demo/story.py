"""The story from beginning to end, and its end in every case: everything is removed unless it should be kept."""

import signal
from typing import Any

from meshagent.demo import access, giveback, join, wire
from meshagent.demo.narrator import Narrator, StepResult
from meshagent.demo.world import World, build
from meshagent.lab import Lab, sweep
from meshagent.model.errors import MeshagentError

STEPS = (
    ("hub", "a control plane in a host of its own", join.hub),
    ("enroll", "three legacy hosts join by one line each", join.enroll),
    ("retrofit", "Redis traffic becomes mutual TLS, Redis and its client untouched", wire.retrofit),
    ("names", "MariaDB by name, no address in any configuration", access.names),
    ("outsider", "a host outside the mesh: counted, then refused", access.outsider),
    ("leave", "every host is given back as it was", giveback.leave),
)

LOOK_AROUND = (
    ("status of a host", "web", "meshagent status"),
    ("the kernel rules, with counters", "cache", "meshagent capture show"),
    ("what the mesh offers", "web", "meshagent peers"),
    ("Redis through the mesh", "web", "redis-cli -h cache.default.mesh.internal info clients"),
    ("MariaDB through the mesh", "web", "mariadb --skip-ssl -h db.default.mesh.internal -u app -papp"),
    ("certificate and its validity", "db", "meshagent certs"),
    ("all hosts", "hub", "meshagent hub hosts"),
    ("take one out", "web", "meshagent leave"),
)


def tell_story(quiet: bool, keep: bool) -> dict[str, Any]:
    """Run the demo; returns the contract's JSON shape. Interrupts clean up and pass through."""
    tell = Narrator(quiet)
    for name in sweep(kept=True):
        tell.say(f"removed what an earlier run left: {name}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tell.say("building five hosts as network namespaces: hub, web (nginx), cache (Redis), db (MariaDB), outsider")
    with Lab(families=(4, 6)) as lab:
        try:
            world = build(lab, tell)
            for name, title, step in STEPS:
                if keep and name == "leave":
                    break
                with tell.step(name, title) as result:
                    step(world, result)
        except MeshagentError as error:
            _failed(tell, error)
        if keep:
            lab.keep()
            _look_around(world, tell)
    return tell.as_dict()


def _failed(tell: Narrator, error: MeshagentError) -> None:
    """A failure outside any step becomes a result of its own: the outcome must never look like success."""
    if not tell.results or tell.results[-1].ok:
        tell.results.append(StepResult("setup", False, error.message))
    tell.say(f"\nstopped: {error.message}")


def _look_around(world: World, tell: Narrator) -> None:
    tell.say("\nThe mesh is still up. Open a shell on a host, then try:")
    for host in (*world.members, world.hub, world.outsider):
        tell.say(f"  {host.name:9} {' '.join(host.enter(['env', f'MESHAGENT_ROOT={host.root}', 'bash']))}")
    for what, name, line in LOOK_AROUND:
        tell.say(f"  {name:9} {line:62} # {what}")
    tell.say("The next `meshagent demo` removes it.")
