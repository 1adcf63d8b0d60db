from edgefarm.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OrderState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_STATE_UNSPECIFIED: _ClassVar[OrderState]
    ORDER_STATE_QUEUED: _ClassVar[OrderState]
    ORDER_STATE_SENT: _ClassVar[OrderState]
    ORDER_STATE_DONE: _ClassVar[OrderState]
    ORDER_STATE_CANCELLED: _ClassVar[OrderState]
    ORDER_STATE_QUARANTINED: _ClassVar[OrderState]

class HoldKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HOLD_KIND_UNSPECIFIED: _ClassVar[HoldKind]
    HOLD_KIND_LEASE: _ClassVar[HoldKind]
    HOLD_KIND_DRAIN: _ClassVar[HoldKind]
    HOLD_KIND_DRIVER: _ClassVar[HoldKind]
ORDER_STATE_UNSPECIFIED: OrderState
ORDER_STATE_QUEUED: OrderState
ORDER_STATE_SENT: OrderState
ORDER_STATE_DONE: OrderState
ORDER_STATE_CANCELLED: OrderState
ORDER_STATE_QUARANTINED: OrderState
HOLD_KIND_UNSPECIFIED: HoldKind
HOLD_KIND_LEASE: HoldKind
HOLD_KIND_DRAIN: HoldKind
HOLD_KIND_DRIVER: HoldKind

class Run(_message.Message):
    __slots__ = ("name", "campaign", "number", "spec_digest", "spec", "state", "owner", "labels", "started_unix_ms", "finished_unix_ms", "exit_code", "report", "report_digest", "devices")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SPEC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    REPORT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    name: str
    campaign: str
    number: int
    spec_digest: str
    spec: str
    state: str
    owner: str
    labels: _containers.ScalarMap[str, str]
    started_unix_ms: int
    finished_unix_ms: int
    exit_code: int
    report: str
    report_digest: str
    devices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., campaign: _Optional[str] = ..., number: _Optional[int] = ..., spec_digest: _Optional[str] = ..., spec: _Optional[str] = ..., state: _Optional[str] = ..., owner: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., started_unix_ms: _Optional[int] = ..., finished_unix_ms: _Optional[int] = ..., exit_code: _Optional[int] = ..., report: _Optional[str] = ..., report_digest: _Optional[str] = ..., devices: _Optional[_Iterable[str]] = ...) -> None: ...

class OpenRunRequest(_message.Message):
    __slots__ = ("campaign", "spec_digest", "spec", "owner", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    SPEC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    campaign: str
    spec_digest: str
    spec: str
    owner: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, campaign: _Optional[str] = ..., spec_digest: _Optional[str] = ..., spec: _Optional[str] = ..., owner: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RunsRequest(_message.Message):
    __slots__ = ("campaign", "brief")
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    BRIEF_FIELD_NUMBER: _ClassVar[int]
    campaign: str
    brief: bool
    def __init__(self, campaign: _Optional[str] = ..., brief: bool = ...) -> None: ...

class DevicesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeviceStatus(_message.Message):
    __slots__ = ("device", "device_class", "state", "last_seen_unix_ms", "reason")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    device: _types_pb2.Device
    device_class: str
    state: str
    last_seen_unix_ms: int
    reason: str
    def __init__(self, device: _Optional[_Union[_types_pb2.Device, _Mapping]] = ..., device_class: _Optional[str] = ..., state: _Optional[str] = ..., last_seen_unix_ms: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class DevicesReply(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[DeviceStatus]
    def __init__(self, devices: _Optional[_Iterable[_Union[DeviceStatus, _Mapping]]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("orders",)
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    orders: _containers.RepeatedCompositeFieldContainer[_types_pb2.Order]
    def __init__(self, orders: _Optional[_Iterable[_Union[_types_pb2.Order, _Mapping]]] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CancelOrdersRequest(_message.Message):
    __slots__ = ("run", "orders")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    run: str
    orders: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run: _Optional[str] = ..., orders: _Optional[_Iterable[str]] = ...) -> None: ...

class CancelOrdersReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RetryRequest(_message.Message):
    __slots__ = ("run", "orders")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    run: str
    orders: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run: _Optional[str] = ..., orders: _Optional[_Iterable[str]] = ...) -> None: ...

class RetryReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CancelRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class OrderStatus(_message.Message):
    __slots__ = ("order", "state", "device", "attempts")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    order: _types_pb2.Order
    state: OrderState
    device: str
    attempts: _containers.RepeatedCompositeFieldContainer[_types_pb2.Attempt]
    def __init__(self, order: _Optional[_Union[_types_pb2.Order, _Mapping]] = ..., state: _Optional[_Union[OrderState, str]] = ..., device: _Optional[str] = ..., attempts: _Optional[_Iterable[_Union[_types_pb2.Attempt, _Mapping]]] = ...) -> None: ...

class ProgressRequest(_message.Message):
    __slots__ = ("run", "since", "wait_ns")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    WAIT_NS_FIELD_NUMBER: _ClassVar[int]
    run: str
    since: int
    wait_ns: int
    def __init__(self, run: _Optional[str] = ..., since: _Optional[int] = ..., wait_ns: _Optional[int] = ...) -> None: ...

class ProgressReply(_message.Message):
    __slots__ = ("revision", "orders")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    orders: _containers.RepeatedCompositeFieldContainer[OrderStatus]
    def __init__(self, revision: _Optional[int] = ..., orders: _Optional[_Iterable[_Union[OrderStatus, _Mapping]]] = ...) -> None: ...

class WaitsRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("run", "device", "orders", "state", "holder", "until_unix_ms", "ahead", "reason")
    RUN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    UNTIL_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run: str
    device: str
    orders: int
    state: str
    holder: str
    until_unix_ms: int
    ahead: int
    reason: str
    def __init__(self, run: _Optional[str] = ..., device: _Optional[str] = ..., orders: _Optional[int] = ..., state: _Optional[str] = ..., holder: _Optional[str] = ..., until_unix_ms: _Optional[int] = ..., ahead: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class WaitsReply(_message.Message):
    __slots__ = ("waits",)
    WAITS_FIELD_NUMBER: _ClassVar[int]
    waits: _containers.RepeatedCompositeFieldContainer[Wait]
    def __init__(self, waits: _Optional[_Iterable[_Union[Wait, _Mapping]]] = ...) -> None: ...

class DeployRequest(_message.Message):
    __slots__ = ("deployments", "retry")
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    deployments: _containers.RepeatedCompositeFieldContainer[_types_pb2.Deployment]
    retry: bool
    def __init__(self, deployments: _Optional[_Iterable[_Union[_types_pb2.Deployment, _Mapping]]] = ..., retry: bool = ...) -> None: ...

class DeploymentsRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class DeploymentsReply(_message.Message):
    __slots__ = ("deployments",)
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    deployments: _containers.RepeatedCompositeFieldContainer[_types_pb2.DeploymentStatus]
    def __init__(self, deployments: _Optional[_Iterable[_Union[_types_pb2.DeploymentStatus, _Mapping]]] = ...) -> None: ...

class RollBackRequest(_message.Message):
    __slots__ = ("model", "devices")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    model: str
    devices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., devices: _Optional[_Iterable[str]] = ...) -> None: ...

class WaitForDeploymentsRequest(_message.Message):
    __slots__ = ("ids", "wait_ns")
    IDS_FIELD_NUMBER: _ClassVar[int]
    WAIT_NS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    wait_ns: int
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., wait_ns: _Optional[int] = ...) -> None: ...

class DriveRequest(_message.Message):
    __slots__ = ("campaign", "driver")
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    campaign: str
    driver: str
    def __init__(self, campaign: _Optional[str] = ..., driver: _Optional[str] = ...) -> None: ...

class DriveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Hold(_message.Message):
    __slots__ = ("kind", "name", "holder", "expires_unix_ms")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    kind: HoldKind
    name: str
    holder: str
    expires_unix_ms: int
    def __init__(self, kind: _Optional[_Union[HoldKind, str]] = ..., name: _Optional[str] = ..., holder: _Optional[str] = ..., expires_unix_ms: _Optional[int] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("devices", "seconds")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedScalarFieldContainer[str]
    seconds: float
    def __init__(self, devices: _Optional[_Iterable[str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, devices: _Optional[_Iterable[str]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, devices: _Optional[_Iterable[str]] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, devices: _Optional[_Iterable[str]] = ...) -> None: ...

class HoldsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HoldsReply(_message.Message):
    __slots__ = ("holds",)
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    holds: _containers.RepeatedCompositeFieldContainer[Hold]
    def __init__(self, holds: _Optional[_Iterable[_Union[Hold, _Mapping]]] = ...) -> None: ...

class CreateTokenRequest(_message.Message):
    __slots__ = ("uses", "expires_s", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    USES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    uses: int
    expires_s: float
    labels: _containers.ScalarMap[str, str]
    def __init__(self, uses: _Optional[int] = ..., expires_s: _Optional[float] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class TokenReply(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: str
    def __init__(self, token: _Optional[str] = ...) -> None: ...

class AddUserRequest(_message.Message):
    __slots__ = ("name", "role")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ...) -> None: ...

class LabelDeviceRequest(_message.Message):
    __slots__ = ("device", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    device: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, device: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class LabelDeviceReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReplaceDeviceRequest(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: str
    def __init__(self, device: _Optional[str] = ...) -> None: ...

class RevokeDeviceRequest(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: str
    def __init__(self, device: _Optional[str] = ...) -> None: ...

class RevokeDeviceReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UsersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class User(_message.Message):
    __slots__ = ("name", "role", "standing", "machines", "enrolled_unix_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    MACHINES_FIELD_NUMBER: _ClassVar[int]
    ENROLLED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    standing: str
    machines: int
    enrolled_unix_ms: int
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., standing: _Optional[str] = ..., machines: _Optional[int] = ..., enrolled_unix_ms: _Optional[int] = ...) -> None: ...

class UsersReply(_message.Message):
    __slots__ = ("users",)
    USERS_FIELD_NUMBER: _ClassVar[int]
    users: _containers.RepeatedCompositeFieldContainer[User]
    def __init__(self, users: _Optional[_Iterable[_Union[User, _Mapping]]] = ...) -> None: ...

class RevokeUserRequest(_message.Message):
    __slots__ = ("user",)
    USER_FIELD_NUMBER: _ClassVar[int]
    user: str
    def __init__(self, user: _Optional[str] = ...) -> None: ...

class RevokeUserReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
