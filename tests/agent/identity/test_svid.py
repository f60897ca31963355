"""What a host believes of an answer to its CSR."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from meshagent.agent.identity.keys import build_csr, generate_workload_key
from meshagent.agent.identity.svid import identity_from_answer, identity_from_set
from meshagent.model.errors import MeshagentError
from tests.fakes.authority import Authority
from tests.fakes.signed import WEB, answer, fresh_identity

NOW = datetime.now(UTC)
KEY = generate_workload_key()
CSR = build_csr(KEY, WEB)
HUB = Authority()

Answer = Callable[[], list[str]]

REFUSED: list[tuple[str, Answer]] = [
    ("holds no root", lambda: answer(HUB, CSR)[:1]),
    ("not for the key", lambda: answer(HUB, build_csr(generate_workload_key(), WEB))),
    ("names spiffe://mesh.internal/ns/default/sa/db", lambda: answer(HUB, CSR, san=str(WEB).replace("web", "db"))),
    ("both ends", lambda: answer(HUB, CSR, both_ends=False)),
    ("leads to none", lambda: [answer(Authority(), CSR)[0], HUB.root_pem]),
    ("trusted so far", lambda: answer(Authority(), CSR)),
    ("not valid yet", lambda: answer(HUB, CSR, now=NOW + timedelta(hours=1))),
    ("expired", lambda: answer(HUB, CSR, now=NOW - timedelta(days=8))),
    ("not PEM", lambda: ["junk", HUB.root_pem]),
    ("larger than", lambda: [answer(HUB, CSR)[0], HUB.root_pem * 1000]),
]


@pytest.mark.parametrize(("why", "make"), REFUSED, ids=[why for why, _ in REFUSED])
def test_an_answer_with_one_thing_wrong_is_refused_and_the_error_says_what(why: str, make: Answer) -> None:
    with pytest.raises(MeshagentError) as caught:
        identity_from_answer(make(), KEY, WEB, NOW, trusted_bundle=HUB.root_pem)
    assert why in caught.value.message


def test_a_right_answer_becomes_the_identity_with_the_root_kept_apart_from_the_chain() -> None:
    found = identity_from_answer(answer(HUB, CSR), KEY, WEB, NOW, trusted_bundle=HUB.root_pem)
    assert found.spiffe_id == WEB
    assert found.chain_pem.count("BEGIN CERTIFICATE") == 1
    assert found.bundle_pem == HUB.root_pem
    assert "PRIVATE" not in repr(found)


def test_a_bundle_may_bring_a_second_root_beside_the_trusted_one() -> None:
    new = Authority()
    chain = [answer(new, CSR)[0], HUB.root_pem + new.root_pem]
    found = identity_from_answer(chain, KEY, WEB, NOW, trusted_bundle=HUB.root_pem)
    assert found.bundle_pem.count("BEGIN CERTIFICATE") == 2


def test_a_stored_set_is_taken_back_even_when_it_has_expired() -> None:
    past = NOW - timedelta(days=30)
    old = fresh_identity(HUB, now=past)
    assert identity_from_set(old.key_pem, old.chain_pem, old.bundle_pem) == old


def test_a_stored_key_that_does_not_fit_its_certificate_is_damage() -> None:
    found = fresh_identity(HUB)
    with pytest.raises(MeshagentError) as caught:
        identity_from_set(generate_workload_key(), found.chain_pem, found.bundle_pem)
    assert caught.value.code == "identity-damaged"
