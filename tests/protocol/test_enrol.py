"""Tokens as people paste them."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from meshagent.model.errors import ExitCode, UsageError
from meshagent.protocol.enrol import Token, new_token, parse_token, secret_hash, spki_hash
from tests.fakes.authority import Authority

#: The same in every process: test names are made of it.
TOKEN = Token("a" * 52, "b" * 12, "c2d" * 17 + "e")
TEXT = TOKEN.reveal()


def test_a_token_is_one_string_that_is_parsed_back_even_with_spaces_around() -> None:
    assert parse_token(f"  {TEXT}\n") == TOKEN
    assert f"ma1.{TOKEN.ca_hash}.{TOKEN.id}.{TOKEN.secret}" == TEXT
    assert len(TOKEN.id) == 12


def test_new_tokens_pin_the_root_and_are_never_alike() -> None:
    made = [new_token("a" * 52) for _ in range(50)]
    assert all(parse_token(token.reveal()) == token and token.ca_hash == "a" * 52 for token in made)
    assert len({token.id for token in made}) == len({token.secret for token in made}) == 50


def test_the_secret_never_shows() -> None:
    assert TOKEN.secret not in repr(TOKEN)
    assert TOKEN.secret not in str(TOKEN)
    assert TOKEN.secret not in secret_hash(TOKEN.secret)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "token-prefix"),
        ("hello", "token-prefix"),
        (TEXT.replace("ma1", "ma2"), "token-prefix"),
        ("ma1." + "a" * 1_000, "token-prefix"),
        ("ma1.", "token-truncated"),
        (TEXT[:-1], "token-truncated"),
        (TEXT[:70], "token-truncated"),
        (TEXT + "a", "token-truncated"),
        (TEXT.upper().replace("MA1", "ma1"), "token-characters"),
        (TEXT[:-1] + "!", "token-characters"),
        (TEXT[:-1] + "\u0661", "token-characters"),
        (TEXT + ".aaaa", "token-characters"),
    ],
)
def test_a_wrong_token_is_told_from_a_truncated_one_and_never_repeated(text: str, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_token(text)
    assert caught.value.code == code
    assert caught.value.exit_code is ExitCode.USAGE
    assert TOKEN.secret[:20] not in caught.value.message + caught.value.hint


@given(st.text(max_size=150))
def test_no_text_crashes_the_parser(text: str) -> None:
    for candidate in (text, "ma1." + text):
        with pytest.raises(UsageError):
            parse_token(candidate)


def test_the_pin_is_the_sha256_of_the_roots_public_key_in_base32() -> None:
    root = Authority().root
    spki = root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    expected = base64.b32encode(hashlib.sha256(spki).digest()).decode().strip("=").lower()
    assert spki_hash(root.public_bytes(Encoding.DER)) == expected
    assert len(expected) == 52
