"""Which announced services are accepted: a table."""

from datetime import timedelta

import pytest

from meshagent.hub.registry.admission import OWNER_HOLD, Announcer, Rivals, admit
from meshagent.hub.store.rows import ServiceRow
from tests.hub.hosts import NOW, announced_service

HOST = "cache.default.mesh.internal"
CACHE = Announcer("default", "cache", None, frozenset({"cache", "web"}))


def row(account: str, last_used: timedelta = timedelta(0)) -> ServiceRow:
    return ServiceRow(HOST, 1, "default", account, NOW - last_used)


SAME = frozenset({(6379, "tcp")})


@pytest.mark.parametrize(
    ("announcer", "rivals", "reason"),
    [
        (CACHE, Rivals(), ""),
        (CACHE, Rivals(row("cache"), SAME, frozenset({"cache"})), ""),
        (CACHE, Rivals(row("cache"), frozenset({(6380, "tcp")}), frozenset({"cache"})), "other hosts serve this name"),
        (CACHE, Rivals(row("cache"), frozenset({(6379, "redis")}), frozenset({"cache"})), "other hosts serve"),
        (CACHE, Rivals(row("web"), SAME, frozenset({"web"})), "taken by service account web"),
        (CACHE, Rivals(row("web")), "taken by service account web"),  # nobody serves it now, but it is held
        (CACHE, Rivals(row("web", OWNER_HOLD)), ""),  # not for ever
        (CACHE, Rivals(row("gone")), ""),  # no host of that account is enrolled any more
        (CACHE, Rivals(row("")), ""),  # known from a ServiceEntry only
        (Announcer("default", "cache", ("cache", "queue")), Rivals(), ""),
        (Announcer("default", "cache", ("queue",)), Rivals(), "allows only queue"),
        (Announcer("default", "cache", ()), Rivals(), "no services"),
    ],
)
def test_a_service_is_accepted_or_refused_with_the_reason(announcer: Announcer, rivals: Rivals, reason: str) -> None:
    (verdict,) = admit(announcer, (announced_service(),), {HOST: rivals}, "mesh.internal", NOW)
    assert verdict.host == HOST and verdict.accepted is (not reason) and reason in verdict.reason


def test_one_refused_service_takes_no_other_with_it() -> None:
    services = (announced_service(), announced_service("queue", 5672))
    taken = {HOST: Rivals(row("web"), SAME, frozenset({"web"}))}
    assert [v.accepted for v in admit(CACHE, services, taken, "mesh.internal", NOW)] == [False, True]
