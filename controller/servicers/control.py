"""The `Control` service: what drivers and the command line ask. Each method's role is checked in one place, `_checked`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from typing import Any, TypeVar

from controller import roles
from controller.deployments import UNDERWAY
from controller.farm import Farm
from controller.roles import Caller, Members
from controller.servicers.callers import CallerOf
from controller.servicers.errors import Context, in_thread, translated
from edgefarm.errors import StorageError, UserError
from edgefarm.model import Deployment, Order, Progress, Run
from edgefarm.v1 import control_pb2, control_pb2_grpc
from edgefarm.wire import decode, encode

T = TypeVar("T")
_Method = Callable[[Any, Any, Caller], Awaitable[Any]]
_LONGEST_WAIT_S = 60.0
_PART_BYTES = 4 * 2**20  # of a reply in parts: well below the largest message


def _unary(method: _Method) -> Callable[[Any, Any, Context], Awaitable[Any]]:
    """A service method: the caller is known and allowed, errors become statuses."""

    @functools.wraps(method)
    async def call(self: ControlServicer, request: Any, context: Context) -> Any:
        async with self._checked(context, method.__name__) as caller:
            return await method(self, request, caller)

    return call


class ControlServicer(control_pb2_grpc.ControlServicer):
    """Serves `farm` to users.

    Args:
        threads: where calls that take the farm's lock or the database run.
        caller_of: who calls. Raises Denied.
        members: devices and users that may take part; None: those that the command itself brings.
    """

    def __init__(self, farm: Farm, threads: Executor, caller_of: CallerOf, members: Members | None = None) -> None:
        self._farm, self._threads, self._caller_of, self._known = farm, threads, caller_of, members

    @property
    def _members(self) -> Members:
        if self._known is None:
            raise UserError("this controller is hosted by a command: it has neither tokens nor users nor enrolled devices")
        return self._known

    @contextlib.asynccontextmanager
    async def _checked(self, context: Context, method: str) -> AsyncIterator[Caller]:
        async with translated(context, self._storage_failed):
            caller = self._caller_of(context)
            roles.check(caller, f"Control.{method}")
            yield caller

    def _storage_failed(self, error: StorageError) -> None:
        """Nobody else is told: the caller gets it."""

    async def _do(self, call: Callable[..., T], *arguments: Any) -> T:
        return await in_thread(self._threads, call, *arguments)

    async def _when(self, wait_ns: int, look: Callable[[], T], done: Callable[[T], bool]) -> T:
        """What `look` sees once it is `done`, or after `wait_ns`. No thread is held meanwhile."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        deadline = loop.time() + min(wait_ns / 1e9, _LONGEST_WAIT_S)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(changed.set)

        with self._farm.watched(wake):
            while True:
                changed.clear()
                found = await self._do(look)
                left = deadline - loop.time()
                if done(found) or left <= 0:
                    return found
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(changed.wait(), left)

    # Runs and orders

    @_unary
    async def OpenRun(self, request: Any, caller: Caller) -> Any:
        """The campaign's present run; a new one is the caller's."""
        labels = dict(request.labels)
        return encode(await self._do(self._farm.open_run, request.campaign, request.spec_digest, request.spec, caller.name, labels))

    @_unary
    async def UpdateRun(self, request: Any, caller: Caller) -> Any:
        """Stores how a run stands; whose it is does not change."""
        await self._do(self._farm.update_run, decode(Run, request))
        return request

    async def Runs(self, request: Any, context: Context) -> None:
        """Runs, oldest first, one message each."""
        async with self._checked(context, "Runs"):
            for run in await self._do(lambda: self._farm.runs(request.campaign, brief=request.brief)):
                await context.write(encode(run))

    @_unary
    async def CancelRun(self, request: Any, caller: Caller) -> Any:
        """Ends a run."""
        return encode(await self._do(self._farm.cancel_run, request.run))

    @_unary
    async def Submit(self, request: Any, caller: Caller) -> Any:
        """Queues orders."""
        await self._do(self._farm.submit, [decode(Order, o) for o in request.orders])
        return control_pb2.SubmitReply()

    @_unary
    async def CancelOrders(self, request: Any, caller: Caller) -> Any:
        """Cancels orders."""
        await self._do(self._farm.cancel, request.run, list(request.orders))
        return control_pb2.CancelOrdersReply()

    @_unary
    async def Retry(self, request: Any, caller: Caller) -> Any:
        """Queues failed orders again."""
        await self._do(self._farm.retry, request.run, list(request.orders))
        return control_pb2.RetryReply()

    async def Progress(self, request: Any, context: Context) -> None:
        """What changed in a run's orders, in parts."""
        async with self._checked(context, "Progress"):
            found = await self._when(
                request.wait_ns, lambda: self._farm.news(request.run, request.since), lambda p: p.revision > request.since
            )
            for part in await self._do(lambda: list(_parts(found))):
                await context.write(part)

    # Devices and deployments

    @_unary
    async def Devices(self, request: Any, caller: Caller) -> Any:
        """All devices."""
        return control_pb2.DevicesReply(devices=[encode(d) for d in await self._do(self._farm.devices)])

    @_unary
    async def Deploy(self, request: Any, caller: Caller) -> Any:
        """Says what devices are to run."""
        wanted = [decode(Deployment, d) for d in request.deployments]
        return _deployments(await self._do(self._farm.deploy, wanted, request.retry))

    @_unary
    async def RollBack(self, request: Any, caller: Caller) -> Any:
        """Orders what ran before."""
        return _deployments(await self._do(self._farm.roll_back, request.model, list(request.devices)))

    @_unary
    async def Deployments(self, request: Any, caller: Caller) -> Any:
        """The newest of every device and model."""
        return _deployments(await self._do(self._farm.deployments, request.model))

    @_unary
    async def WaitForDeployments(self, request: Any, caller: Caller) -> Any:
        """Statuses, once all have ended."""
        found = await self._when(
            request.wait_ns,
            lambda: self._farm.wait_for_deployments(list(request.ids), 0.0),
            lambda statuses: all(s.state not in UNDERWAY for s in statuses),
        )
        return _deployments(found)

    # Holds

    @_unary
    async def Drive(self, request: Any, caller: Caller) -> Any:
        """Holds a campaign for a driver."""
        await self._do(self._farm.drive, request.campaign, _driver(caller, request.driver))
        return control_pb2.DriveReply()

    @_unary
    async def Leave(self, request: Any, caller: Caller) -> Any:
        """Ends it."""
        await self._do(self._farm.leave, request.campaign, _driver(caller, request.driver))
        return control_pb2.DriveReply()

    @_unary
    async def Lease(self, request: Any, caller: Caller) -> Any:
        """Keeps devices for the caller."""
        return _holds(await self._do(self._farm.lease, list(request.devices), caller.name, request.seconds))

    @_unary
    async def Drain(self, request: Any, caller: Caller) -> Any:
        """Keeps devices from new orders."""
        return _holds(await self._do(self._farm.drain, list(request.devices), caller.name))

    @_unary
    async def Release(self, request: Any, caller: Caller) -> Any:
        """Ends leases of the caller (an admin: anybody's), and drains."""
        holder = None if caller.role == roles.ADMIN else caller.name
        return control_pb2.ReleaseReply(devices=await self._do(self._farm.release, list(request.devices), holder))

    @_unary
    async def Holds(self, request: Any, caller: Caller) -> Any:
        """All that is held."""
        return _holds(await self._do(self._farm.holds))

    # Who takes part

    @_unary
    async def CreateToken(self, request: Any, caller: Caller) -> Any:
        """A token with which devices join."""
        members, labels = self._members, dict(request.labels)
        return _token(
            await self._do(lambda: members.create_token(caller.name, uses=request.uses, expires_s=request.expires_s, labels=labels))
        )

    @_unary
    async def AddUser(self, request: Any, caller: Caller) -> Any:
        """A token with which a user logs in."""
        return _token(await self._do(self._members.add_user, request.name, request.role, caller.name))

    @_unary
    async def LabelDevice(self, request: Any, caller: Caller) -> Any:
        """Sets and takes away labels of a device."""
        await self._do(self._members.label, request.device, {k: v or None for k, v in request.labels.items()})
        return control_pb2.LabelDeviceReply()

    @_unary
    async def ReplaceDevice(self, request: Any, caller: Caller) -> Any:
        """A token with which other hardware takes over a device's name."""
        return _token(await self._do(self._members.replace, request.device, caller.name))

    @_unary
    async def RevokeDevice(self, request: Any, caller: Caller) -> Any:
        """Shuts a device out."""
        await self._do(self._members.revoke, request.device)
        return control_pb2.RevokeDeviceReply()


def _driver(caller: Caller, driver: str) -> str:
    return f"{caller.name} on {driver}"


def _deployments(statuses: Any) -> control_pb2.DeploymentsReply:
    return control_pb2.DeploymentsReply(deployments=[encode(s) for s in statuses])


def _holds(holds: Any) -> control_pb2.HoldsReply:
    return control_pb2.HoldsReply(holds=[encode(h) for h in holds])


def _token(token: str) -> control_pb2.TokenReply:
    return control_pb2.TokenReply(token=token)


def _parts(progress: Progress) -> Iterator[control_pb2.ProgressReply]:
    """At least one part, so that the revision is told."""
    part = control_pb2.ProgressReply(revision=progress.revision)
    count = 0
    for status in progress.orders:
        message = encode(status)
        if count and count + message.ByteSize() > _PART_BYTES:
            yield part
            part, count = control_pb2.ProgressReply(revision=progress.revision), 0
        part.orders.append(message)
        count += message.ByteSize()
    yield part
