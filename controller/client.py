"""`Client`: `Control` spoken to a running controller. It is the interface: a driver does not know which one it has."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from controller.artifacts import ArtifactStore
from controller.connection import ANSWER_S, Connection
from controller.deployments import UNDERWAY
from edgefarm import chunks
from edgefarm.digest import digest_bytes, digest_file
from edgefarm.errors import DigestMismatch, EdgefarmError, StorageError, Unreachable, UserError
from edgefarm.model import (
    CHUNK_BYTES,
    Deployment,
    DeploymentStatus,
    DeviceStatus,
    Hold,
    Order,
    OrderStatus,
    Progress,
    Run,
    User,
    Wait,
)
from edgefarm.v1 import artifacts_pb2, artifacts_pb2_grpc, control_pb2, control_pb2_grpc
from edgefarm.wire import decode, encode

_TRANSFER_S = 3600.0  # of one attempt to move a content; a broken one goes on where it broke
_LONGEST_WAIT_S = 30.0  # of one call; longer waits are several
_HEARTBEAT_S = 5.0  # of a driver: well within the controller's limit
_BATCH_BYTES = 4 * 2**20  # of orders or deployments in one request: well below the largest message


class Client:
    """Implements `controller.control.Control`. Safe from any thread; every call but `roll_back` is repeated until it gets through.

    Args:
        connection: to the controller.
        cache: a folder for artifacts that were fetched.

    All methods raise the controller's errors, and Unreachable once the connection's patience is over.
    """

    def __init__(self, connection: Connection, cache: Path) -> None:
        self._connection, self._folder = connection, cache
        self._control = control_pb2_grpc.ControlStub(connection.channel)  # type: ignore[no-untyped-call]
        self._artifacts = artifacts_pb2_grpc.ArtifactsStub(connection.channel)  # type: ignore[no-untyped-call]
        self._fetching = connection.channel.unary_stream(chunks.FETCH, artifacts_pb2.FetchRequest.SerializeToString, chunks.decode)
        self._views: dict[str, _View] = {}
        self._lock = threading.Lock()
        self._lost: EdgefarmError | None = None  # why this process may not drive any more

    @cached_property
    def _cache(self) -> ArtifactStore:
        return ArtifactStore(self._folder)

    def _call(self, method: Any, request: Any, wait_s: float = 0.0) -> Any:
        if self._lost is not None:
            raise self._lost
        return self._connection.call(method, request, wait_s)

    def _gather(self, method: Any, request: Any, wait_s: float = 0.0) -> list[Any]:
        """All parts of an answer."""
        if self._lost is not None:
            raise self._lost
        return self._connection.gather(method, request, wait_s)

    # Runs and orders

    def open_run(self, campaign: str, spec_digest: str, spec: str, owner: str, labels: Mapping[str, str]) -> Run:
        """The campaign's newest run if its `spec_digest` is equal, else a new one; the controller knows whose it is."""
        request = control_pb2.OpenRunRequest(campaign=campaign, spec_digest=spec_digest, spec=spec, owner=owner, labels=labels)
        return decode(Run, self._call(self._control.OpenRun, request))

    def update_run(self, run: Run) -> None:
        """Stores state, report, exit code and end of a run."""
        self._call(self._control.UpdateRun, encode(run))

    def runs(self, campaign: str = "", *, brief: bool = False) -> Sequence[Run]:
        """All runs (of a campaign), oldest first; `brief`: without specs and reports."""
        request = control_pb2.RunsRequest(campaign=campaign, brief=brief)
        return [decode(Run, r) for r in self._connection.gather(self._control.Runs, request)]

    def cancel_run(self, run: str) -> Run:
        """Ends a run for good: its open orders are cancelled, its driver is told."""
        return decode(Run, self._call(self._control.CancelRun, control_pb2.CancelRunRequest(run=run)))

    def submit(self, orders: Sequence[Order]) -> None:
        """Queues orders; one whose id is known already is left as it is."""
        for some in _batches(orders):
            self._call(self._control.Submit, control_pb2.SubmitRequest(orders=some))

    def cancel(self, run: str, orders: Sequence[str]) -> None:
        """Cancels orders that have not ended."""
        self._call(self._control.CancelOrders, control_pb2.CancelOrdersRequest(run=run, orders=orders))

    def retry(self, run: str, orders: Collection[str] = ()) -> None:
        """Lifts quarantines and remembered failures of a run's orders (of these, if any are named)."""
        self._call(self._control.Retry, control_pb2.RetryRequest(run=run, orders=orders))

    def progress(self, run: str, since: int = -1, wait_s: float = 0.0) -> Progress:
        """All orders of a run with their attempts; waits until its revision is above `since`, or `wait_s` passed.

        Only what changed since the last call travels.
        """
        with self._lock:
            view = self._views.setdefault(run, _View())
        deadline = time.monotonic() + wait_s
        while True:
            if self._lost is not None:
                raise self._lost
            left = max(0.0, deadline - time.monotonic())
            wait = min(left, _LONGEST_WAIT_S) if view.revision >= since else 0.0
            request = control_pb2.ProgressRequest(run=run, since=view.revision, wait_ns=round(wait * 1e9))
            found = view.take(self._connection.gather(self._control.Progress, request, wait))
            if found.revision > since or left <= 0:
                return found

    def waits(self, run: str = "") -> Sequence[Wait]:
        """What orders that wait (of one run), wait for, by run and device; those that only wait for their run's own are not told."""
        parts = self._gather(self._control.Waits, control_pb2.WaitsRequest(run=run))
        return [decode(Wait, w) for part in parts for w in part.waits]

    # Artifacts

    def has(self, digest: str) -> bool:
        """Whether the controller holds these bytes."""
        return bool(self._stat(digest).complete)

    def _stat(self, digest: str) -> Any:
        return self._call(self._artifacts.Stat, artifacts_pb2.StatRequest(digest=digest))

    def put(self, source: Path | bytes) -> str:
        """Sends bytes unless the controller has them; a broken transfer goes on where it broke. Returns their digest."""
        with _readable(source):
            digest = digest_bytes(source) if isinstance(source, bytes) else digest_file(source)
            total = len(source) if isinstance(source, bytes) else source.stat().st_size
        arrived = 0

        def send() -> None:
            nonlocal arrived
            there = self._artifacts.Stat(artifacts_pb2.StatRequest(digest=digest), timeout=ANSWER_S)
            arrived = there.bytes
            while not there.complete:
                offset = there.bytes if there.bytes <= total else 0
                with _readable(source), BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
                    stream.seek(offset)
                    there = self._artifacts.Push(_chunks(stream, digest, offset, total), timeout=_TRANSFER_S)
                if not there.complete and there.bytes <= offset:
                    raise UserError(f"{source if isinstance(source, Path) else digest}: it changed while it was sent")

        try:
            self._connection.persist(send, lambda: arrived)
        except DigestMismatch:  # what was there of it was damaged, and is dropped by now
            self._connection.persist(send, lambda: arrived)
        return digest

    def get(self, digest: str) -> Path:
        """A local, read-only, verified file with these bytes; a broken transfer goes on where it broke. Raises NotFound."""
        if not self._cache.has(digest):
            try:
                self._fetch(digest)
            except DigestMismatch:  # what was here of it was damaged, and is dropped by now
                self._fetch(digest)
        return self._cache.local_path(digest)

    def _fetch(self, digest: str) -> None:
        with self._cache.writer(digest) as writer:

            def receive() -> None:
                request = artifacts_pb2.FetchRequest(digest=digest, offset=writer.offset)
                for data, _ in self._fetching(request, timeout=_TRANSFER_S):
                    writer.write(data)

            if not writer.complete:
                self._connection.persist(receive, lambda: writer.offset)
                writer.commit()

    # Devices and deployments

    def devices(self) -> Sequence[DeviceStatus]:
        """All registered devices, by name."""
        parts = self._gather(self._control.Devices, control_pb2.DevicesRequest())
        return [decode(DeviceStatus, d) for part in parts for d in part.devices]

    def deploy(self, deployments: Sequence[Deployment], retry: bool = False) -> Sequence[DeploymentStatus]:
        """Says what devices are to run."""
        statuses: list[DeploymentStatus] = []
        for some in _batches(deployments):
            statuses += _statuses(self._gather(self._control.Deploy, control_pb2.DeployRequest(deployments=some, retry=retry)))
        return statuses

    def deployments(self, model: str = "") -> Sequence[DeploymentStatus]:
        """The newest deployment of every (device, model)."""
        return _statuses(self._gather(self._control.Deployments, control_pb2.DeploymentsRequest(model=model)))

    def roll_back(self, model: str, devices: Sequence[str]) -> Sequence[DeploymentStatus]:
        """Orders the last committed deployment before the present one again, under a new generation."""
        request = control_pb2.RollBackRequest(model=model, devices=devices)
        try:
            # Once only: where just the answer got lost, a second time would go back further.
            return _statuses(self._connection.gather(self._control.RollBack, request, patience_s=0.0))
        except Unreachable as error:
            if isinstance(error, StorageError):
                raise
            raise Unreachable(
                f"controller {self._connection.address}: did not answer, and may have ordered the way back or not: "
                f"'controller devices' shows what runs; look there before you repeat it ({error})"
            ) from error

    def wait_for_deployments(self, ids: Sequence[str], timeout_s: float) -> Sequence[DeploymentStatus]:
        """Waits until each has ended (committed, failed …) or the time is over; returns the statuses as they are then."""
        while True:
            wait_s = max(0.0, min(timeout_s, _LONGEST_WAIT_S))
            request = control_pb2.WaitForDeploymentsRequest(ids=ids, wait_ns=round(wait_s * 1e9))
            statuses = _statuses(self._gather(self._control.WaitForDeployments, request, wait_s))
            timeout_s -= wait_s
            if timeout_s <= 0 or all(s.state not in UNDERWAY for s in statuses):
                return statuses

    # Holds

    @contextlib.contextmanager
    def driving(self, campaign: str) -> Iterator[None]:
        """Holds a campaign for this process and keeps giving signs of life. Raises Busy where another one drives it.

        Should another driver have taken over (this one was cut off for too long), all further calls raise Busy.
        """
        request = control_pb2.DriveRequest(
            campaign=campaign, driver=f"{socket.gethostname()}, process {os.getpid()}, {secrets.token_hex(4)}"
        )
        self._call(self._control.Drive, request)
        over = threading.Event()
        beating = threading.Thread(target=self._beat, args=(request, over), name="driver", daemon=True)
        beating.start()
        try:
            yield
        finally:
            over.set()
            beating.join()
            with contextlib.suppress(EdgefarmError):  # it ends by itself too
                self._connection.call(self._control.Leave, request, patience_s=0.0)

    def _beat(self, request: Any, over: threading.Event) -> None:
        while not over.wait(_HEARTBEAT_S):
            try:
                self._connection.call(self._control.Drive, request, patience_s=0.0)
            except Unreachable:  # the driver's own calls meet it too
                continue
            except EdgefarmError as error:
                self._lost = error
                return

    def drive(self, campaign: str, driver: str) -> None:
        """Holds a campaign for one driver for a while; repeat it to go on."""
        self._call(self._control.Drive, control_pb2.DriveRequest(campaign=campaign, driver=driver))

    def leave(self, campaign: str, driver: str) -> None:
        """Ends `drive`."""
        self._call(self._control.Leave, control_pb2.DriveRequest(campaign=campaign, driver=driver))

    def lease(self, devices: Sequence[str], holder: str, for_s: float) -> Sequence[Hold]:
        """Keeps devices for this user's orders, all or none; the controller knows who the holder is."""
        return _holds(self._call(self._control.Lease, control_pb2.LeaseRequest(devices=devices, seconds=for_s)))

    def drain(self, devices: Sequence[str], holder: str) -> Sequence[Hold]:
        """Keeps devices from new orders until they are released; what runs there ends."""
        return _holds(self._call(self._control.Drain, control_pb2.DrainRequest(devices=devices)))

    def release(self, devices: Sequence[str], holder: str | None) -> Sequence[str]:
        """Ends this user's leases (an admin: anybody's) and drains; returns the devices that were held."""
        return list(self._call(self._control.Release, control_pb2.ReleaseRequest(devices=devices)).devices)

    def holds(self) -> Sequence[Hold]:
        """All that is held, by kind and name."""
        return _holds(self._call(self._control.Holds, control_pb2.HoldsRequest()))

    # Who takes part

    def create_token(self, uses: int, expires_s: float, labels: Mapping[str, str]) -> str:
        """A token with which devices join."""
        request = control_pb2.CreateTokenRequest(uses=uses, expires_s=expires_s, labels=labels)
        return str(self._call(self._control.CreateToken, request).token)

    def add_user(self, name: str, role: str) -> str:
        """A token with which a user logs in on one machine. `role` counts at once; empty: as it is, operator for a new user."""
        return str(self._call(self._control.AddUser, control_pb2.AddUserRequest(name=name, role=role)).token)

    def users(self) -> Sequence[User]:
        """All users, by name."""
        return [decode(User, u) for u in self._call(self._control.Users, control_pb2.UsersRequest()).users]

    def label(self, device: str, labels: Mapping[str, str | None]) -> None:
        """Sets labels of a device, takes away those that are None."""
        told = {key: value or "" for key, value in labels.items()}
        self._call(self._control.LabelDevice, control_pb2.LabelDeviceRequest(device=device, labels=told))

    def replace(self, device: str) -> str:
        """A token with which other hardware takes the name over."""
        return str(self._call(self._control.ReplaceDevice, control_pb2.ReplaceDeviceRequest(device=device)).token)

    def revoke(self, device: str) -> None:
        """Shuts a device out."""
        self._call(self._control.RevokeDevice, control_pb2.RevokeDeviceRequest(device=device))

    def revoke_user(self, name: str) -> None:
        """Shuts a user out, on all machines."""
        self._call(self._control.RevokeUser, control_pb2.RevokeUserRequest(user=name))


class _View:
    """The orders of one run as they were told so far."""

    def __init__(self) -> None:
        self.revision = -1
        self._orders: dict[str, OrderStatus] = {}

    def take(self, parts: Sequence[Any]) -> Progress:
        """Replaces what changed; returns the whole."""
        for part in parts:
            for status in (decode(OrderStatus, o) for o in part.orders):
                self._orders[status.order.id] = status
            self.revision = part.revision
        return Progress(self.revision, tuple(self._orders.values()))


@contextlib.contextmanager
def _readable(source: Path | bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{error.filename or source!s}: {error.strerror}: check the name and the disk") from error


def _chunks(stream: IO[bytes], digest: str, offset: int, total: int) -> Iterator[Any]:
    data = stream.read(CHUNK_BYTES)
    yield artifacts_pb2.PushChunk(digest=digest, offset=offset, total=total, data=data)
    while data := stream.read(CHUNK_BYTES):
        yield artifacts_pb2.PushChunk(data=data)


def _batches(values: Iterable[Any]) -> Iterator[list[Any]]:
    """All values, encoded, in batches that fit into a message."""
    batch: list[Any] = []
    size = 0
    for message in map(encode, values):
        if batch and size + message.ByteSize() > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += message.ByteSize()
    if batch:
        yield batch


def _statuses(parts: Sequence[Any]) -> list[DeploymentStatus]:
    return [decode(DeploymentStatus, d) for part in parts for d in part.deployments]


def _holds(reply: Any) -> list[Hold]:
    return [decode(Hold, h) for h in reply.holds]
