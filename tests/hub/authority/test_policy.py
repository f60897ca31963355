"""Who may enrol as what: every row of the decision, no database, no clock."""

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address

import pytest

from meshagent.hub.authority.policy import (
    EnrolmentAsk,
    Kind,
    Refusal,
    check_caller,
    check_clock,
    check_token,
    decide_enrolment,
    decide_validity,
    wanted_name,
)
from meshagent.hub.store.rows import HostStatus, TokenRow, TokenUseRow
from tests.hub.hosts import NOW, host_row

TOKEN = TokenRow("t1", "secret-hash", "default", "web", NOW, NOW + timedelta(hours=1))
ASK = EnrolmentAsk("t1", "secret-hash", "web-1", "key-a", ip_address("10.0.0.9"))


def code_of(call: object) -> str:
    with pytest.raises(Refusal) as caught:
        call()  # type: ignore[operator]
    return caught.value.code


@pytest.mark.parametrize(
    ("token", "ask", "code"),
    [
        (None, ASK, "bad-token"),
        (TOKEN, replace(ASK, secret_sha256="wrong"), "bad-token"),
        (replace(TOKEN, revoked=NOW), ASK, "token-revoked"),
        (replace(TOKEN, expires=NOW), ASK, "token-expired"),
        (replace(TOKEN, cidrs=("10.1.0.0/16", "fd00::/8")), ASK, "token-elsewhere"),
        # nothing about a token is learned without its secret
        (replace(TOKEN, revoked=NOW), replace(ASK, secret_sha256="wrong"), "bad-token"),
    ],
)
def test_a_token_that_is_not_good_is_refused(token: TokenRow | None, ask: EnrolmentAsk, code: str) -> None:
    assert code_of(lambda: check_token(ask, token, NOW)) == code


def test_a_token_bound_to_networks_is_good_from_there() -> None:
    check_token(ASK, replace(TOKEN, cidrs=("10.1.0.0/16", "10.0.0.0/24")), NOW)
    check_token(replace(ASK, source=ip_address("fd00::1")), replace(TOKEN, cidrs=("10.1.0.0/16", "fd00::/8")), NOW)


def test_the_name_is_the_tokens_then_the_hosts_then_made_from_the_key() -> None:
    assert wanted_name(replace(ASK, host_name=""), replace(TOKEN, host="db-1")) == "db-1"
    assert wanted_name(ASK, TOKEN) == "web-1"
    assert wanted_name(replace(ASK, host_name="", host_key_sha256="0123456789"), TOKEN) == "web-01234567"
    assert code_of(lambda: wanted_name(ASK, replace(TOKEN, host="db-1"))) == "token-other-host"
    assert code_of(lambda: wanted_name(replace(ASK, host_name="Web_1"), TOKEN)) == "bad-name"


def test_the_same_host_key_again_is_the_same_use() -> None:
    use = TokenUseRow("t1", "key-a", "web-1", NOW)
    current = replace(host_row("web-1", host_id=7), host_key_sha256="key-a")
    grant = decide_enrolment(ASK, TOKEN, (use,), current, "web-1")
    assert not grant.new_use and grant.keeps == current and grant.replaces is None
    other = replace(ASK, host_key_sha256="key-b")
    assert code_of(lambda: decide_enrolment(other, TOKEN, (use,), None, "web-2")) == "token-used"
    assert code_of(lambda: decide_enrolment(ASK, TOKEN, (use,), None, "web-2")) == "host-name-changed"


def test_a_taken_name_is_refused_unless_the_token_may_replace() -> None:
    current = host_row("web-1", host_id=7)
    assert code_of(lambda: decide_enrolment(ASK, TOKEN, (), current, "web-1")) == "host-name-taken"
    grant = decide_enrolment(ASK, replace(TOKEN, replace=True), (), current, "web-1")
    assert grant.replaces == current and grant.keeps is None and grant.new_use


def test_the_same_host_with_a_token_for_another_identity_is_a_new_enrolment() -> None:
    current = replace(host_row("web-1", account="db", host_id=7), host_key_sha256="key-a")
    grant = decide_enrolment(ASK, TOKEN, (), current, "web-1")
    assert grant.replaces == current and grant.service_account == "web"


def test_five_minutes_of_clock_difference_are_the_most() -> None:
    ms = int(NOW.timestamp() * 1000)
    check_clock(ms + 299_000, NOW)
    check_clock(ms - 299_000, NOW)
    for wrong in (ms + 301_000, ms - 301_000, 0, 2**62):
        with pytest.raises(Refusal) as caught:
            check_clock(wrong, NOW)
        assert caught.value.kind is Kind.PRECONDITION and "clock" in caught.value.hint


def test_only_an_active_enrolment_may_call() -> None:
    assert check_caller(host_row()).name == "web-1"
    assert code_of(lambda: check_caller(None)) == "unknown-host"
    for status in (HostStatus.LEFT, HostStatus.REPLACED, HostStatus.REVOKED):
        assert code_of(lambda s=status: check_caller(replace(host_row(), status=s))) == f"host-{status}"


def test_validity_is_seven_days_unless_asked_and_thirty_at_most() -> None:
    assert decide_validity(0) == decide_validity(-5) == timedelta(days=7)
    assert decide_validity(3600) == timedelta(hours=1)
    assert code_of(lambda: decide_validity(31 * 86400)) == "validity-too-long"
