"""The `Control` service: what drivers and the command line ask. Each method's role is checked in one place, `_checked`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from controller import roles
from controller.deployments import UNDERWAY
from controller.farm import Farm
from controller.roles import Caller, Members
from controller.servicers.callers import CallerOf
from controller.servicers.errors import Context, in_thread, translated
from edgefarm.errors import StorageError, UserError
from edgefarm.model import Deployment, DeploymentStatus, Order, Run
from edgefarm.v1 import control_pb2, control_pb2_grpc
from edgefarm.wire import decode, encode

T = TypeVar("T")
_Method = Callable[[Any, Any, Caller], Awaitable[Any]]
_Admitted = Callable[[], Caller]  # who calls, if it still may; raises Denied
_LONGEST_WAIT_S = 60.0
_ADMITTED_S = 2.0  # in which a caller who waits is asked for again: one who was shut out meanwhile learns nothing more
_PART_BYTES = 4 * 2**20  # of an answer in parts: well below the largest message


def _unary(method: _Method) -> Callable[[Any, Any, Context], Awaitable[Any]]:
    """A service method: the caller is known and allowed, errors become statuses."""

    @functools.wraps(method)
    async def call(self: ControlServicer, request: Any, context: Context) -> Any:
        async with self._checked(context, method.__name__) as caller:
            return await method(self, request, caller)

    return call


def _in_parts(method: Callable[[Any, Any, _Admitted], Awaitable[Sequence[Any]]]) -> Callable[[Any, Any, Context], Awaitable[None]]:
    """As `_unary`, for a method that returns the messages of an answer; whether the caller still may is asked before each."""

    @functools.wraps(method)
    async def call(self: ControlServicer, request: Any, context: Context) -> None:
        def admitted() -> Caller:
            return self._admitted(context, method.__name__)

        async with self._checked(context, method.__name__):
            for part in await method(self, request, admitted):
                admitted()
                await context.write(part)

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
            yield self._admitted(context, method)

    def _admitted(self, context: Context, method: str) -> Caller:
        """Who calls, if it may. Raises Denied."""
        caller = self._caller_of(context)
        roles.check(caller, f"Control.{method}")
        return caller

    def _storage_failed(self, error: StorageError) -> None:
        """Nobody else is told: the caller gets it."""

    async def _do(self, call: Callable[..., T], *arguments: Any) -> T:
        return await in_thread(self._threads, call, *arguments)

    async def _do_to_own(self, caller: Caller, runs: Iterable[str], call: Callable[[], T]) -> T:
        """Does something to runs that are the caller's; to an admin, all are. Raises Denied."""

        def checked() -> T:
            if caller.role != roles.ADMIN:
                self._farm.check_owner(caller.name, runs)
            return call()

        return await self._do(checked)

    async def _when(self, wait_ns: int, look: Callable[[], T], done: Callable[[T], bool], admitted: Callable[[], object]) -> T:
        """What `look` sees once it is `done`, or after `wait_ns`. No thread is held meanwhile. Raises what `admitted` does."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        deadline = loop.time() + min(wait_ns / 1e9, _LONGEST_WAIT_S)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(changed.set)

        with self._farm.watched(wake):
            while True:
                changed.clear()
                found = await self._do(look)
                admitted()
                if done(found) or loop.time() >= deadline:
                    return found
                while not changed.is_set() and (left := deadline - loop.time()) > 0:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(changed.wait(), min(left, _ADMITTED_S))
                    admitted()

    # Runs and orders

    @_unary
    async def OpenRun(self, request: Any, caller: Caller) -> Any:
        """The campaign's present run, or a new one; another user's only for an admin."""
        given = (request.campaign, request.spec_digest, request.spec, caller.name, dict(request.labels))
        return await self._do(lambda: encode(self._farm.open_run(*given, admin=caller.role == roles.ADMIN)))

    @_unary
    async def UpdateRun(self, request: Any, caller: Caller) -> Any:
        """Stores how a run stands; whose it is does not change."""
        await self._do_to_own(caller, [request.name], lambda: self._farm.update_run(decode(Run, request)))
        return request

    @_in_parts
    async def Runs(self, request: Any, admitted: _Admitted) -> Sequence[Any]:
        """Runs, oldest first, one message each."""
        return await self._do(lambda: [encode(r) for r in self._farm.runs(request.campaign, brief=request.brief)])

    @_unary
    async def CancelRun(self, request: Any, caller: Caller) -> Any:
        """Ends a run."""
        return encode(await self._do_to_own(caller, [request.run], lambda: self._farm.cancel_run(request.run)))

    @_unary
    async def Submit(self, request: Any, caller: Caller) -> Any:
        """Queues orders."""
        runs = {o.run for o in request.orders}
        await self._do_to_own(caller, runs, lambda: self._farm.submit([decode(Order, o) for o in request.orders]))
        return control_pb2.SubmitReply()

    @_unary
    async def CancelOrders(self, request: Any, caller: Caller) -> Any:
        """Cancels orders."""
        await self._do_to_own(caller, [request.run], lambda: self._farm.cancel(request.run, list(request.orders)))
        return control_pb2.CancelOrdersReply()

    @_unary
    async def Retry(self, request: Any, caller: Caller) -> Any:
        """Queues failed orders again."""
        await self._do_to_own(caller, [request.run], lambda: self._farm.retry(request.run, list(request.orders)))
        return control_pb2.RetryReply()

    @_in_parts
    async def Progress(self, request: Any, admitted: _Admitted) -> Sequence[Any]:
        """What changed in a run's orders."""
        found = await self._when(
            request.wait_ns, lambda: self._farm.news(request.run, request.since), lambda p: p.revision > request.since, admitted
        )
        return await self._do(lambda: _parts(control_pb2.ProgressReply, "orders", found.orders, revision=found.revision))

    @_in_parts
    async def Waits(self, request: Any, admitted: _Admitted) -> Sequence[Any]:
        """What orders wait for."""
        return await self._do(lambda: _parts(control_pb2.WaitsReply, "waits", self._farm.waits(request.run)))

    # Devices and deployments

    @_in_parts
    async def Devices(self, request: Any, admitted: _Admitted) -> Sequence[Any]:
        """All devices."""
        return await self._do(lambda: _parts(control_pb2.DevicesReply, "devices", self._farm.devices()))

    @_in_parts
    async def Deploy(self, request: Any, admitted: _Admitted) -> Sequence[Any]:
        """Says what devices are to run."""
        return await self._do(lambda: _deployments(self._farm.deploy([decode(Deployment, d) for d in request.deployments], request.retry)))

    @_in_parts
    async def RollBack(self, request: Any, admitted: _Admitted) -> Sequence[Any]:
        """Orders what ran before."""
        return await self._do(lambda: _deployments(self._farm.roll_back(request.model, list(request.devices))))

    @_in_parts
    async def Deployments(self, request: Any, admitted: _Admitted) -> Sequence[Any]:
        """The newest of every device and model."""
        return await self._do(lambda: _deployments(self._farm.deployments(request.model)))

    @_in_parts
    async def WaitForDeployments(self, request: Any, admitted: _Admitted) -> Sequence[Any]:
        """Statuses, once all have ended."""
        found = await self._when(
            request.wait_ns,
            lambda: self._farm.wait_for_deployments(list(request.ids), 0.0),
            lambda statuses: all(s.state not in UNDERWAY for s in statuses),
            admitted,
        )
        return await self._do(lambda: _deployments(found))

    # Holds

    @_unary
    async def Drive(self, request: Any, caller: Caller) -> Any:
        """Holds a campaign for a driver."""
        user = None if caller.role == roles.ADMIN else caller.name
        await self._do(self._farm.drive, request.campaign, _driver(caller, request.driver), user)
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

    @_unary
    async def Users(self, request: Any, caller: Caller) -> Any:
        """All users."""
        return control_pb2.UsersReply(users=[encode(u) for u in await self._do(self._members.users)])

    @_unary
    async def RevokeUser(self, request: Any, caller: Caller) -> Any:
        """Shuts a user out."""
        await self._do(self._members.revoke_user, request.user)
        return control_pb2.RevokeUserReply()


def _driver(caller: Caller, driver: str) -> str:
    return f"{caller.name} on {driver}"


def _deployments(statuses: Sequence[DeploymentStatus]) -> list[Any]:
    return _parts(control_pb2.DeploymentsReply, "deployments", statuses)


def _holds(holds: Any) -> control_pb2.HoldsReply:
    return control_pb2.HoldsReply(holds=[encode(h) for h in holds])


def _token(token: str) -> control_pb2.TokenReply:
    return control_pb2.TokenReply(token=token)


def _parts(reply: Any, field: str, values: Iterable[Any], **common: Any) -> list[Any]:
    """Messages with all of `values`; at least one, so that what is `common` is told."""
    parts, count = [reply(**common)], 0
    for value in values:
        message = encode(value)
        size = message.ByteSize()
        if count and count + size > _PART_BYTES:
            parts.append(reply(**common))
            count = 0
        getattr(parts[-1], field).append(message)
        count += size
    return parts
