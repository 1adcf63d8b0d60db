from edgefarm.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AgentMessage(_message.Message):
    __slots__ = ("hello", "heartbeat", "probed", "attempt", "order_ended", "deployment_status")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    PROBED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ORDER_ENDED_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_STATUS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    probed: Probed
    attempt: _types_pb2.Attempt
    order_ended: OrderEnded
    deployment_status: _types_pb2.DeploymentStatus
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., probed: _Optional[_Union[Probed, _Mapping]] = ..., attempt: _Optional[_Union[_types_pb2.Attempt, _Mapping]] = ..., order_ended: _Optional[_Union[OrderEnded, _Mapping]] = ..., deployment_status: _Optional[_Union[_types_pb2.DeploymentStatus, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("order", "disk_free_bytes", "rss_bytes")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    order: str
    disk_free_bytes: int
    rss_bytes: int
    def __init__(self, order: _Optional[str] = ..., disk_free_bytes: _Optional[int] = ..., rss_bytes: _Optional[int] = ...) -> None: ...

class Probed(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: _types_pb2.Device
    def __init__(self, device: _Optional[_Union[_types_pb2.Device, _Mapping]] = ...) -> None: ...

class OrderEnded(_message.Message):
    __slots__ = ("order", "cancelled")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    order: str
    cancelled: bool
    def __init__(self, order: _Optional[str] = ..., cancelled: bool = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "features", "epoch", "heartbeat_ns", "session")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_NS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    features: _containers.RepeatedScalarFieldContainer[str]
    epoch: int
    heartbeat_ns: int
    session: str
    def __init__(self, protocol: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., epoch: _Optional[int] = ..., heartbeat_ns: _Optional[int] = ..., session: _Optional[str] = ...) -> None: ...

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
