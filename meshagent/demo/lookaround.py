"""What to try in a mesh that was kept: ten commands, each of which works as printed."""

from pathlib import Path

from meshagent.demo.narrator import Narrator

#: (host, command, what one sees). ``{db}`` is db's own address, a literal that the mesh owns.
COMMANDS = (
    ("web", "meshagent status", "a host on one screen"),
    ("web", "meshagent peers", "what the mesh offers to it"),
    ("cache", "meshagent capture show", "the kernel's rules, each with its reason and counter"),
    ("web", "redis-cli -h cache.default.mesh.internal info clients", "Redis by name, encrypted on the way"),
    ("web", "mariadb --skip-ssl -h {db} -uapp -papp app -e 'select * from orders, (select user()) me'", "a literal"),
    ("cache", "curl -s http://web.default.mesh.internal/who", "nginx sees who calls: address and SPIFFE ID"),
    ("db", "meshagent certs", "identity, chain and validity"),
    ("hub", "meshagent hub hosts", "everybody, as the control plane sees them"),
    ("hub", "meshagent hub get ServiceEntry", "the claim on the hard-coded addresses"),
    ("db", "meshagent leave --drain 5", "take a host out: it is as it was"),
)


def lines(entrance: Path, db: str) -> list[tuple[str, str]]:
    """The commands as one pastes them, and what each shows."""
    return [(f"{entrance} {host} {command.format(db=db)}", what) for host, command, what in COMMANDS]


def tell(narrator: Narrator, entrance: Path, db: str) -> None:
    """Print them."""
    narrator.say("\nThe mesh is still up, and stays up. A shell on a host: " + f"{entrance} web")
    narrator.say("Ten commands to try:")
    for line, what in lines(entrance, db):
        narrator.say(f"  # {what}\n  {line}")
    narrator.say("The next `meshagent demo` removes it.")
