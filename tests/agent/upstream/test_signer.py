"""The CSR client's judgement of answers."""

import asyncio

import pytest

from meshagent.agent.upstream.signer import CallError, Signer
from meshagent.model.address import HostPort
from meshagent.model.errors import MeshagentError
from meshagent.model.identity import Identity
from meshagent.protocol.pb.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshagent.runtime.latest import Latest
from tests.fakes.authority import Authority

ONE, TWO = HostPort("one", 15012), HostPort("two", 15012)


class FakeService:
    """Answers per address: an error to raise or a chain."""

    def __init__(self, **answers: MeshagentError | list[str]) -> None:
        self.answers = answers
        self.called: list[str] = []

    async def __call__(
        self, address: HostPort, identity: Identity, request: IstioCertificateRequest
    ) -> IstioCertificateResponse:
        self.called.append(address.host)
        answer = self.answers[address.host]
        if isinstance(answer, MeshagentError):
            raise answer
        return IstioCertificateResponse(cert_chain=answer)


def sign(service: FakeService) -> list[str]:
    identity = Latest(Authority().identity())
    return list(asyncio.run(Signer(service, [ONE, TWO], identity).sign("csr")))


def test_the_chain_comes_from_the_first_address_that_answers() -> None:
    away = MeshagentError("hub-unreachable", "away")
    service = FakeService(one=away, two=["leaf", "root"])
    assert sign(service) == ["leaf", "root"]
    assert service.called == ["one", "two"]


@pytest.mark.parametrize(
    ("status", "code", "asks_the_next"),
    [
        ("UNAUTHENTICATED", "credential-refused", False),
        ("PERMISSION_DENIED", "signing-refused", False),
        ("FAILED_PRECONDITION", "signing-refused", False),
        ("UNAVAILABLE", "signing-unavailable", True),
        ("RESOURCE_EXHAUSTED", "signing-unavailable", True),
        ("INTERNAL", "signing-unavailable", True),
    ],
)
def test_a_status_says_whether_trying_again_can_help(status: str, code: str, asks_the_next: bool) -> None:
    service = FakeService(one=CallError(status, "why"), two=CallError(status, "why"))
    with pytest.raises(MeshagentError) as caught:
        sign(service)
    assert caught.value.code == code
    assert "why" in caught.value.message
    assert caught.value.hint
    assert service.called == (["one", "two"] if asks_the_next else ["one"])


@pytest.mark.parametrize("chain", [[], ["leaf"], ["x"] * 17])
def test_an_answer_that_is_no_chain_is_an_error(chain: list[str]) -> None:
    with pytest.raises(MeshagentError):
        sign(FakeService(one=chain, two=chain))
