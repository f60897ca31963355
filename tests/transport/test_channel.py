"""How a control plane is addressed, and what a failed call says to a person."""

import asyncio

import grpc
import pytest

from meshagent.model.address import HostPort
from meshagent.model.errors import ExitCode, MeshagentError, NotEnrolledError
from meshagent.protocol.pb.meshagent_v1_pb2 import EnrollRequest, EnrollResponse
from meshagent.transport.channel import enroll_call, hub_channel, target
from meshagent.transport.grpc_server import Call, RefusedCallError, Unary
from meshagent.transport.methods import ENROLL
from tests.fakes.authority import Authority
from tests.transport.mesh import hub


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("10.0.0.1", "ipv4:10.0.0.1:15012"),
        ("2001:db8::1", "ipv6:[2001:db8::1]:15012"),
        ("hub.example", "dns:///hub.example:15012"),
    ],
)
def test_addresses_are_written_as_grpc_wants_them(host: str, expected: str) -> None:
    assert target(HostPort(host, 15012)) == expected


async def enroll(request: EnrollRequest, call: Call) -> EnrollResponse:
    if request.token_id == "used":
        raise RefusedCallError(
            grpc.StatusCode.PERMISSION_DENIED, "token-used", "the token is used up", hint="ask für one"
        )
    if request.token_id == "none":
        raise NotEnrolledError
    if request.token_id == "defect":
        raise RuntimeError("inside")
    return EnrollResponse(host_name=request.host_name)


def outcome(token_id: str) -> EnrollResponse:
    async def scenario() -> EnrollResponse:
        async with hub([Unary(ENROLL, enroll)]) as running, running.channel() as channel:
            return await enroll_call(channel, EnrollRequest(token_id=token_id, host_name="web"))

    return asyncio.run(scenario())


def failure(token_id: str) -> MeshagentError:
    with pytest.raises(MeshagentError) as caught:
        outcome(token_id)
    return caught.value


def test_an_answer_arrives() -> None:
    assert outcome("good").host_name == "web"


def test_a_refusal_arrives_with_code_message_hint_and_exit_code() -> None:
    error = failure("used")
    assert (error.code, error.message, error.hint) == ("token-used", "the token is used up", "ask für one")
    assert failure("none").exit_code is ExitCode.NOT_ENROLLED


def test_a_defect_of_the_hub_says_nothing_of_its_inside() -> None:
    error = failure("defect")
    assert error.code == "internal"
    assert "inside" not in error.message + error.hint


def test_a_hub_that_is_away_is_unreachable() -> None:
    async def scenario() -> None:
        channel = hub_channel(HostPort("127.0.0.1", 1), roots_pem=Authority().root_pem, server_name="hub.mesh.internal")
        try:
            await enroll_call(channel, EnrollRequest(), timeout=5)
        finally:
            await channel.close()

    with pytest.raises(MeshagentError) as caught:
        asyncio.run(scenario())
    assert caught.value.code == "hub-unreachable"
