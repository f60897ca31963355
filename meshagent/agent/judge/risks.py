"""What is refused unless a person accepts it by name, because it could cost them the machine. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from meshagent.agent.capture.values import HostFacts, Intent
from meshagent.agent.judge.values import Session
from meshagent.model.errors import RefusedError

LOGIN = "login"


@dataclass(frozen=True, slots=True)
class Risk:
    """``name`` is the word that ``--accept`` takes, ``text`` what would happen, ``mend`` how to avoid it."""

    name: str
    text: str
    mend: str


def require_accepted(risks: Iterable[Risk], accept: Collection[str]) -> None:
    """Raises ``RefusedError`` (exit 5) for the first risk that nobody accepted."""
    for risk in risks:
        if risk.name not in accept:
            raise RefusedError(risk.name, risk.text, hint=f"{risk.mend}; or accept it: --accept {risk.name}")


def login_risk(intent: Intent, facts: HostFacts, session: Session | None) -> Iterable[Risk]:
    """The ways by which people log in must not be captured: those of sshd, and the one this command came by."""
    here = session.port if session else 0
    for port in sorted({*facts.sshd_ports, *facts.session_ports, *({here} if here else ())}):
        if not _captured(intent, port):
            continue
        who = f"{session} comes in on port {port}" if port == here else f"people log in on port {port}"
        fate = "refuse new logins that don't come through the mesh" if port in intent.strict_ports else "capture it"
        yield Risk(
            LOGIN,
            f"{who}, and this would {fate}",
            f"take port {port} out of services.d or capture.force_ports, or put it in capture.exclude.ports",
        )


def _captured(intent: Intent, port: int) -> bool:
    if port in intent.counted_ports or port in intent.strict_ports:
        return True
    return bool(intent.inbound_families) and not any(port in direct for direct in intent.inbound_direct_ports)
