"""Every gRPC method of the mesh: its path and its messages. Clients and servers read the same table; no stubs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from google.protobuf.message import Message

from meshagent.protocol.pb.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshagent.protocol.pb.meshagent_v1_pb2 import (
    Announcement,
    AnnouncementResult,
    EnrollRequest,
    EnrollResponse,
)

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Q, A]):
    """One method: ``/package.Service/Name`` and the classes of its request and response."""

    path: str
    request: type[Q]
    response: type[A]

    @property
    def parse_request(self) -> Callable[[bytes], Q]:
        return self.request.FromString

    @property
    def parse_response(self) -> Callable[[bytes], A]:
        return self.response.FromString


def serialize(message: Message) -> bytes:
    """The serialiser of every method. Maps in order: what many clients say alike is alike byte for byte."""
    return message.SerializeToString(deterministic=True)


DELTA_ADS = Method(
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
)
DELTA_SECRETS = Method(
    "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets", DeltaDiscoveryRequest, DeltaDiscoveryResponse
)
CREATE_CERTIFICATE = Method(
    "/istio.v1.auth.IstioCertificateService/CreateCertificate", IstioCertificateRequest, IstioCertificateResponse
)
ENROLL = Method("/meshagent.v1.Enrolment/Enroll", EnrollRequest, EnrollResponse)
ANNOUNCE = Method("/meshagent.v1.Registry/Announce", Announcement, AnnouncementResult)
