from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrollRequest(_message.Message):
    __slots__ = ("token_id", "token_secret", "host_name", "csr_pem", "host_key_pem", "host_key_signature", "addresses", "unix_ms", "boot_id", "agent_version")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SECRET_FIELD_NUMBER: _ClassVar[int]
    HOST_NAME_FIELD_NUMBER: _ClassVar[int]
    CSR_PEM_FIELD_NUMBER: _ClassVar[int]
    HOST_KEY_PEM_FIELD_NUMBER: _ClassVar[int]
    HOST_KEY_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    token_id: str
    token_secret: str
    host_name: str
    csr_pem: str
    host_key_pem: str
    host_key_signature: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    unix_ms: int
    boot_id: str
    agent_version: str
    def __init__(self, token_id: _Optional[str] = ..., token_secret: _Optional[str] = ..., host_name: _Optional[str] = ..., csr_pem: _Optional[str] = ..., host_key_pem: _Optional[str] = ..., host_key_signature: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ..., unix_ms: _Optional[int] = ..., boot_id: _Optional[str] = ..., agent_version: _Optional[str] = ...) -> None: ...

class EnrollResponse(_message.Message):
    __slots__ = ("host_name", "namespace", "service_account", "trust_domain", "zone", "cert_chain", "unix_ms")
    HOST_NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    TRUST_DOMAIN_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    CERT_CHAIN_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    host_name: str
    namespace: str
    service_account: str
    trust_domain: str
    zone: str
    cert_chain: _containers.RepeatedScalarFieldContainer[str]
    unix_ms: int
    def __init__(self, host_name: _Optional[str] = ..., namespace: _Optional[str] = ..., service_account: _Optional[str] = ..., trust_domain: _Optional[str] = ..., zone: _Optional[str] = ..., cert_chain: _Optional[_Iterable[str]] = ..., unix_ms: _Optional[int] = ...) -> None: ...

class Service(_message.Message):
    __slots__ = ("name", "port", "target_port", "target_address", "protocol", "labels", "weight", "priority", "site", "healthy", "reason")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    TARGET_PORT_FIELD_NUMBER: _ClassVar[int]
    TARGET_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    port: int
    target_port: int
    target_address: str
    protocol: str
    labels: _containers.ScalarMap[str, str]
    weight: int
    priority: int
    site: str
    healthy: bool
    reason: str
    def __init__(self, name: _Optional[str] = ..., port: _Optional[int] = ..., target_port: _Optional[int] = ..., target_address: _Optional[str] = ..., protocol: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., weight: _Optional[int] = ..., priority: _Optional[int] = ..., site: _Optional[str] = ..., healthy: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("code", "severity", "text")
    CODE_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    code: str
    severity: str
    text: str
    def __init__(self, code: _Optional[str] = ..., severity: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("generation", "boot_id", "addresses", "agent_version", "envoy_version", "posture", "locality", "services", "conditions", "goodbye", "leave", "doors")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENVOY_VERSION_FIELD_NUMBER: _ClassVar[int]
    POSTURE_FIELD_NUMBER: _ClassVar[int]
    LOCALITY_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    DOORS_FIELD_NUMBER: _ClassVar[int]
    generation: int
    boot_id: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    agent_version: str
    envoy_version: str
    posture: str
    locality: str
    services: _containers.RepeatedCompositeFieldContainer[Service]
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    goodbye: bool
    leave: bool
    doors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, generation: _Optional[int] = ..., boot_id: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., agent_version: _Optional[str] = ..., envoy_version: _Optional[str] = ..., posture: _Optional[str] = ..., locality: _Optional[str] = ..., services: _Optional[_Iterable[_Union[Service, _Mapping]]] = ..., conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ..., goodbye: _Optional[bool] = ..., leave: _Optional[bool] = ..., doors: _Optional[_Iterable[str]] = ...) -> None: ...

class ServiceResult(_message.Message):
    __slots__ = ("name", "accepted", "reason", "host", "virtual_addresses")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    VIRTUAL_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    name: str
    accepted: bool
    reason: str
    host: str
    virtual_addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., accepted: _Optional[bool] = ..., reason: _Optional[str] = ..., host: _Optional[str] = ..., virtual_addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class AnnouncementResult(_message.Message):
    __slots__ = ("generation", "services", "unix_ms")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    generation: int
    services: _containers.RepeatedCompositeFieldContainer[ServiceResult]
    unix_ms: int
    def __init__(self, generation: _Optional[int] = ..., services: _Optional[_Iterable[_Union[ServiceResult, _Mapping]]] = ..., unix_ms: _Optional[int] = ...) -> None: ...

class HostPolicy(_message.Message):
    __slots__ = ("ports",)
    class Redirect(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REDIRECT_NONE: _ClassVar[HostPolicy.Redirect]
        REDIRECT_MUTUAL_TLS: _ClassVar[HostPolicy.Redirect]
    REDIRECT_NONE: HostPolicy.Redirect
    REDIRECT_MUTUAL_TLS: HostPolicy.Redirect
    class Port(_message.Message):
        __slots__ = ("port", "strict", "redirect")
        PORT_FIELD_NUMBER: _ClassVar[int]
        STRICT_FIELD_NUMBER: _ClassVar[int]
        REDIRECT_FIELD_NUMBER: _ClassVar[int]
        port: int
        strict: bool
        redirect: HostPolicy.Redirect
        def __init__(self, port: _Optional[int] = ..., strict: _Optional[bool] = ..., redirect: _Optional[_Union[HostPolicy.Redirect, str]] = ...) -> None: ...
    PORTS_FIELD_NUMBER: _ClassVar[int]
    ports: _containers.RepeatedCompositeFieldContainer[HostPolicy.Port]
    def __init__(self, ports: _Optional[_Iterable[_Union[HostPolicy.Port, _Mapping]]] = ...) -> None: ...
