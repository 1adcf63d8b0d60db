"""What a device is told when it attaches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.reconcile import Difference, HeldOrder, KnownDeployment, reconcile
from edgefarm.model import AttemptId, Cancel, DeploymentState, DeploymentStatus, LatencyWork
from tests.fakes.orders import a_deployment, a_hello, a_memory_order, an_order

LAUNCHES = (0, 1, 2)


def _status(generation: int, state: DeploymentState, reason: str = "") -> DeploymentStatus:
    return DeploymentStatus(f"d{generation}", "bench-1", "m", generation, state, reason=reason)


def _known(generation: int, state: DeploymentState) -> KnownDeployment:
    return KnownDeployment(a_deployment(generation=generation, id=f"d{generation}"), _status(generation, state))


def test_first_contact_with_nothing_to_do() -> None:
    assert reconcile(a_hello(), [], []) == Difference()


@given(done=st.sets(st.sampled_from(LAUNCHES)), coming=st.sets(st.sampled_from(LAUNCHES)), open_=st.booleans())
def test_only_what_is_left_is_sent_again(done: set[int], coming: set[int], open_: bool) -> None:
    hello = a_hello(open_orders=("o1",) if open_ else (), unacknowledged=tuple(AttemptId("o1", i) for i in sorted(coming)))
    difference = reconcile(hello, [HeldOrder(an_order(launches=LAUNCHES), frozenset(done))], [])
    assert difference.cancel == ()
    left = set(LAUNCHES) - done - coming
    if open_:
        assert difference == Difference()
    elif done == set(LAUNCHES):
        assert (difference.resend, difference.finished) == ((), ("o1",))
    elif not left:
        assert difference == Difference()  # the attempts that end it are on their way
    else:
        (order,) = difference.resend
        assert isinstance(order.work, LatencyWork)
        assert set(order.work.launches) == left
        assert difference.finished == ()


@pytest.mark.parametrize(("done", "coming", "again"), [(False, False, True), (True, False, False), (False, True, False)])
def test_a_memory_pass_is_one_piece(done: bool, coming: bool, again: bool) -> None:
    hello = a_hello(unacknowledged=(AttemptId("m1", 0),) if coming else ())
    difference = reconcile(hello, [HeldOrder(a_memory_order(), frozenset({0} if done else ()))], [])
    assert difference.resend == ((a_memory_order(),) if again else ())


def test_orders_that_are_not_wanted_are_cancelled_once() -> None:
    hello = a_hello(open_orders=("old", "o1", "old"))
    assert reconcile(hello, [HeldOrder(an_order(), frozenset())], []).cancel == (Cancel("old"),)


def test_an_old_agent_is_told_nothing() -> None:
    hello = a_hello(protocol=0, open_orders=("old",), deployments=(_status(1, DeploymentState.COMMITTED),))
    difference = reconcile(hello, [HeldOrder(an_order(), frozenset())], [_known(2, DeploymentState.ORDERED)], too_old=True)
    assert difference == Difference(learned=(_status(1, DeploymentState.COMMITTED),))


def test_a_state_that_only_a_newer_agent_knows_is_not_learned() -> None:
    said = _status(2, DeploymentState.UNSPECIFIED)
    difference = reconcile(a_hello(deployments=(said,)), [], [_known(2, DeploymentState.ORDERED)])
    assert difference == Difference()  # the device speaks of it itself: it is not sent again


ORDERED, STAGED, COMMITTED = DeploymentState.ORDERED, DeploymentState.STAGED, DeploymentState.COMMITTED
FAILED, ROLLED_BACK, SUPERSEDED = DeploymentState.FAILED, DeploymentState.ROLLED_BACK, DeploymentState.SUPERSEDED


@pytest.mark.parametrize(
    ("known", "said", "sent", "learned"),
    [
        ([(1, ORDERED)], [], [1], []),
        ([(1, STAGED)], [], [1], []),
        ([(1, STAGED)], [(1, STAGED)], [1], []),  # it was cut while staging
        ([(1, COMMITTED)], [(1, COMMITTED)], [], []),
        ([(1, ORDERED)], [(1, COMMITTED)], [], [1]),
        ([(1, ORDERED)], [(1, FAILED)], [], [1]),
        ([(1, FAILED)], [], [], []),
        ([(1, ROLLED_BACK)], [], [], []),
        ([(1, COMMITTED)], [], [1], []),  # the device lost its state
        ([(1, SUPERSEDED), (2, ORDERED)], [(1, COMMITTED)], [2], [1]),
        ([(1, COMMITTED), (2, ORDERED)], [(1, COMMITTED)], [2], []),
        ([(1, SUPERSEDED), (2, COMMITTED)], [(2, ROLLED_BACK), (1, COMMITTED)], [], [2, 1]),  # rolled back on the device itself
        ([], [(5, COMMITTED)], [], [5]),  # another controller's
        ([(1, ORDERED)], [(5, COMMITTED)], [], [5]),
    ],
)
def test_deployments_follow_the_newest_generation(
    known: list[tuple[int, DeploymentState]], said: list[tuple[int, DeploymentState]], sent: list[int], learned: list[int]
) -> None:
    hello = a_hello(deployments=tuple(_status(*s) for s in said))
    difference = reconcile(hello, [], [_known(*k) for k in known])
    assert [d.generation for d in difference.deploy] == sent
    assert [s.generation for s in difference.learned] == learned


def test_a_model_is_compared_with_itself_only() -> None:
    other = DeploymentStatus("x", "bench-1", "other", 9, COMMITTED)
    difference = reconcile(a_hello(deployments=(other,)), [], [_known(1, ORDERED)])
    assert [d.model for d in difference.deploy] == ["m"]
    assert difference.learned == (other,)
