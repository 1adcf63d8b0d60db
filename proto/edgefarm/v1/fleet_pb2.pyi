from edgefarm.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrollRequest(_message.Message):
    __slots__ = ("token", "name", "csr_pem", "kind")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CSR_PEM_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    token: str
    name: str
    csr_pem: str
    kind: str
    def __init__(self, token: _Optional[str] = ..., name: _Optional[str] = ..., csr_pem: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...

class EnrollReply(_message.Message):
    __slots__ = ("kind", "name", "certificate_pem", "main_address")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    MAIN_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    certificate_pem: str
    main_address: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., certificate_pem: _Optional[str] = ..., main_address: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("certificate_pem", "signature")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: str
    signature: bytes
    def __init__(self, certificate_pem: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("nonce", "certificate_pem", "main_address", "unix_ms")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    MAIN_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    certificate_pem: str
    main_address: str
    unix_ms: int
    def __init__(self, nonce: _Optional[bytes] = ..., certificate_pem: _Optional[str] = ..., main_address: _Optional[str] = ..., unix_ms: _Optional[int] = ...) -> None: ...

class AgentMessage(_message.Message):
    __slots__ = ("hello", "heartbeat", "probed", "attempt", "order_ended", "deployment_status", "telemetry")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    PROBED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ORDER_ENDED_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_STATUS_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    probed: Probed
    attempt: _types_pb2.Attempt
    order_ended: OrderEnded
    deployment_status: _types_pb2.DeploymentStatus
    telemetry: Telemetry
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., probed: _Optional[_Union[Probed, _Mapping]] = ..., attempt: _Optional[_Union[_types_pb2.Attempt, _Mapping]] = ..., order_ended: _Optional[_Union[OrderEnded, _Mapping]] = ..., deployment_status: _Optional[_Union[_types_pb2.DeploymentStatus, _Mapping]] = ..., telemetry: _Optional[_Union[Telemetry, _Mapping]] = ...) -> None: ...

class ControllerMessage(_message.Message):
    __slots__ = ("welcome", "order", "cancel", "ack", "deployment", "drain")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    order: _types_pb2.Order
    cancel: Cancel
    ack: Ack
    deployment: _types_pb2.Deployment
    drain: Drain
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., order: _Optional[_Union[_types_pb2.Order, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., deployment: _Optional[_Union[_types_pb2.Deployment, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "features", "instance", "device", "probed", "open_orders", "unacknowledged", "deployments")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PROBED_FIELD_NUMBER: _ClassVar[int]
    OPEN_ORDERS_FIELD_NUMBER: _ClassVar[int]
    UNACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    features: _containers.RepeatedScalarFieldContainer[str]
    instance: str
    device: _types_pb2.Device
    probed: bool
    open_orders: _containers.RepeatedScalarFieldContainer[str]
    unacknowledged: _containers.RepeatedCompositeFieldContainer[AttemptId]
    deployments: _containers.RepeatedCompositeFieldContainer[_types_pb2.DeploymentStatus]
    def __init__(self, protocol: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., instance: _Optional[str] = ..., device: _Optional[_Union[_types_pb2.Device, _Mapping]] = ..., probed: bool = ..., open_orders: _Optional[_Iterable[str]] = ..., unacknowledged: _Optional[_Iterable[_Union[AttemptId, _Mapping]]] = ..., deployments: _Optional[_Iterable[_Union[_types_pb2.DeploymentStatus, _Mapping]]] = ...) -> None: ...

class AttemptId(_message.Message):
    __slots__ = ("order", "index")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    order: str
    index: int
    def __init__(self, order: _Optional[str] = ..., index: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("order", "disk_free_bytes", "rss_bytes", "paused", "local_s")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    LOCAL_S_FIELD_NUMBER: _ClassVar[int]
    order: str
    disk_free_bytes: int
    rss_bytes: int
    paused: bool
    local_s: int
    def __init__(self, order: _Optional[str] = ..., disk_free_bytes: _Optional[int] = ..., rss_bytes: _Optional[int] = ..., paused: bool = ..., local_s: _Optional[int] = ...) -> None: ...

class Probed(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: _types_pb2.Device
    def __init__(self, device: _Optional[_Union[_types_pb2.Device, _Mapping]] = ...) -> None: ...

class OrderEnded(_message.Message):
    __slots__ = ("order", "cancelled", "local_s")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    LOCAL_S_FIELD_NUMBER: _ClassVar[int]
    order: str
    cancelled: bool
    local_s: int
    def __init__(self, order: _Optional[str] = ..., cancelled: bool = ..., local_s: _Optional[int] = ...) -> None: ...

class Telemetry(_message.Message):
    __slots__ = ("families",)
    FAMILIES_FIELD_NUMBER: _ClassVar[int]
    families: _containers.RepeatedCompositeFieldContainer[Family]
    def __init__(self, families: _Optional[_Iterable[_Union[Family, _Mapping]]] = ...) -> None: ...

class Family(_message.Message):
    __slots__ = ("name", "series")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    name: str
    series: _containers.RepeatedCompositeFieldContainer[Series]
    def __init__(self, name: _Optional[str] = ..., series: _Optional[_Iterable[_Union[Series, _Mapping]]] = ...) -> None: ...

class Series(_message.Message):
    __slots__ = ("labels", "value")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.ScalarMap[str, str]
    value: float
    def __init__(self, labels: _Optional[_Mapping[str, str]] = ..., value: _Optional[float] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "features", "epoch", "heartbeat_ns", "session", "telemetry_ns", "unix_ms", "version", "upgrade")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_NS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_NS_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPGRADE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    features: _containers.RepeatedScalarFieldContainer[str]
    epoch: int
    heartbeat_ns: int
    session: str
    telemetry_ns: int
    unix_ms: int
    version: str
    upgrade: str
    def __init__(self, protocol: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., epoch: _Optional[int] = ..., heartbeat_ns: _Optional[int] = ..., session: _Optional[str] = ..., telemetry_ns: _Optional[int] = ..., unix_ms: _Optional[int] = ..., version: _Optional[str] = ..., upgrade: _Optional[str] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("order",)
    ORDER_FIELD_NUMBER: _ClassVar[int]
    order: str
    def __init__(self, order: _Optional[str] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("order", "index")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    order: str
    index: int
    def __init__(self, order: _Optional[str] = ..., index: _Optional[int] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
