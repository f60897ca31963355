"""Transcripts cannot be mistaken for one another, and only the key's owner signs."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from meshagent.model.errors import MeshagentError
from meshagent.protocol.signing import enrolment_transcript, new_host_key, public_pem, sign, transcript, verify

FIELDS = {"ca_hash": "a", "token_id": "b", "csr_pem": "c", "host_key_pem": "d"}


@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5), max_size=4))
def test_different_fields_never_give_the_same_bytes(one: list[bytes], other: list[bytes]) -> None:
    assert (transcript(b"p", one) == transcript(b"p", other)) == (one == other)


def test_a_purpose_is_part_of_what_is_signed() -> None:
    assert transcript(b"enrol", [b"x"]) != transcript(b"rejoin", [b"x"])
    assert transcript(b"p", [b"x"]) != transcript(b"px", [])


def test_every_field_of_an_enrolment_counts() -> None:
    base = enrolment_transcript(**FIELDS)
    assert all(enrolment_transcript(**{**FIELDS, name: "other"}) != base for name in FIELDS)


@pytest.mark.parametrize("key", [new_host_key(), ec.generate_private_key(ec.SECP256R1())], ids=["ed25519", "p-256"])
def test_a_signature_holds_for_its_message_and_key_only(key: ec.EllipticCurvePrivateKey) -> None:
    message = enrolment_transcript(**FIELDS)
    signature = sign(key, message)
    verify(public_pem(key), signature, message)
    for pem, sig, text in (
        (public_pem(key), signature, message + b"x"),
        (public_pem(key), signature[:-1], message),
        (public_pem(key), b"", message),
        (public_pem(new_host_key()), signature, message),
    ):
        with pytest.raises(MeshagentError) as caught:
            verify(pem, sig, text)
        assert caught.value.code == "bad-signature"


def test_keys_of_other_kinds_and_garbage_are_refused() -> None:
    wrong = [rsa.generate_private_key(65_537, 2_048), ec.generate_private_key(ec.SECP384R1())]
    pems = [k.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() for k in wrong]
    for pem in [*pems, "", "garbage", "x" * 10_000]:
        with pytest.raises(MeshagentError) as caught:
            verify(pem, b"", b"")
        assert caught.value.code == "bad-host-key"
