"""``meshagent plan``, and the question that ``enroll``, ``posture`` and ``capture on`` ask before they act."""

from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from meshagent.cli import render
from meshagent.cli.calls import call_agent
from meshagent.cli.context import emit, settings, shared_options
from meshagent.cli.straight import enrolled
from meshagent.model.errors import MeshagentError
from meshagent.model.posture import Posture

if TYPE_CHECKING:
    from meshagent.agent.plan import Plan
    from meshagent.model.address import HostPort

POSTURES = click.Choice([posture.value for posture in Posture])

accept_option = click.option("--accept", multiple=True, metavar="RISK", help="Accept a risk that a refusal named.")

#: For people; programs get everything.
_MOST_ROWS = 20
_MOST_ELEMENTS = 8


@click.command(epilog="Example: meshagent plan --posture strict")
@click.option("--posture", type=POSTURES, help="Plan for this posture instead of the configured one.")
@accept_option
@shared_options
def plan(posture: str | None, accept: tuple[str, ...]) -> None:
    """What enrolling, or a posture, would do to this host. Changes nothing; works before enrolment."""
    planned = make(posture)
    refuse(planned, accept)
    if settings().json:
        emit(planned.answer)
        return
    _draw(planned.answer)


def make(posture: str | None, hubs: "Iterable[HostPort]" = ()) -> "Plan":
    """The plan for a posture (None: the configured one) with what the daemon knows, where one answers."""
    from meshagent.agent.plan import make_plan

    paths = settings().paths
    live, silent = {}, ""
    if enrolled(paths):
        try:
            live = call_agent("plan.facts", timeout=5)
        except MeshagentError as error:
            if error.code not in ("daemon-down", "no-answer"):
                raise
            silent = f"{error.message}, so addresses and policies of the mesh are not in this plan"
    planned = make_plan(paths, posture, live, hubs)
    planned.answer["warnings"] += [silent] if silent else []
    return planned


def refuse(planned: "Plan", accept: Collection[str]) -> None:
    """Raises ``RefusedError`` (exit 5) for a risk of the plan that wasn't accepted."""
    from meshagent.agent.judge.risks import require_accepted

    require_accepted(planned.risks, accept)


def _draw(planned: dict[str, Any]) -> None:
    click.echo(f"posture {planned['posture']}\n")
    render.table(("CAPTURED", "WHAT"), [(c["port"], c["reason"]) for c in planned["captured"]], "no port is captured")
    click.echo()
    if planned["redirected"]:
        _cut(("TAKES ANOTHER WAY", "WHY"), [(r["what"], r["reason"]) for r in planned["redirected"]])
        click.echo()
    render.table(("SPARED", "WHY"), [(s["port"], s["reason"]) for s in planned["spared"]], "no port has to be spared")
    click.echo()
    _cut(("NEVER CAPTURED", "WHY"), [(d["what"], d["reason"]) for d in planned["direct"]])
    if planned["connections"]:
        click.echo()
        rows = [(c["local"], c["remote"], c["process"], c["effect"]) for c in planned["connections"]]
        _cut(("OPEN CONNECTION", "PEER", "PROGRAM", "WHAT HAPPENS"), rows)
    for firewall in planned["firewalls"]:
        click.echo(f"\nfirewall {firewall['name']}: {firewall['text']}")
        if firewall["allow"]:
            click.echo(f"  let them in with: {firewall['allow']}")
    if planned["address_trust"]:
        click.echo()
        rules = [(f"{t['program']} on {t['port']}", t["rule"], t["text"]) for t in planned["address_trust"]]
        _cut(("ACCESS BY ADDRESS", "RULE", "BEHIND THE MESH"), rules)
    click.echo()
    settings_read = [(s["name"], s["value"], s["text"]) for s in planned["sysctls"]]
    render.table(("KERNEL SETTING", "NOW", "READ, NEVER CHANGED"), settings_read)
    risks = [f"{risk['text']} (accepted)" for risk in planned["risks"]]
    for title, lines in (("would change", planned["changes"]), ("mind", [*risks, *planned["warnings"]])):
        if lines:
            click.echo(f"\n{title}:")
            for line in lines:
                click.echo(f"  - {line}")
    click.echo(f"\nkernel rules:\n{short_rules(planned['rules']) or '  none'}")


def _cut(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table of the first rows, and how many more there are."""
    render.table(headers, rows[:_MOST_ROWS])
    if len(rows) > _MOST_ROWS:
        click.echo(f"and {len(rows) - _MOST_ROWS} more; all of them: meshagent plan -o json")


def short_rules(rules: str) -> str:
    """Rules with the first elements of each set: thousands of addresses say no more than eight."""
    lines = iter(rules.splitlines())
    shown: list[str] = []
    for line in lines:
        shown.append(line)
        if "elements = {" not in line or line.endswith("}"):
            continue
        rest = []
        for more in lines:
            rest.append(more)
            if more.endswith("}"):
                break
        shown += islice(rest, _MOST_ELEMENTS - 1) if len(rest) >= _MOST_ELEMENTS else rest
        if len(rest) >= _MOST_ELEMENTS:
            shown.append(f"\t\t\t\t# and {len(rest) - _MOST_ELEMENTS + 1} more }}")
    return "\n".join(shown)
