"""Who measures what next: tables, and properties that hold for every fleet and queue."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.schedule import Assignment, Ready, Underway, Waiting, assign
from edgefarm.windows import Window


@dataclass(frozen=True)
class Case:
    waiting: tuple[Waiting, ...]
    ready: tuple[Ready, ...]
    expected: tuple[tuple[str, str], ...]
    underway: tuple[Underway, ...] = ()
    device_turns: dict[str, int] = field(default_factory=dict)
    run_turns: dict[str, int] = field(default_factory=dict)
    used: dict[tuple[str, str], float] = field(default_factory=dict)


def w(order: str, device: str = "", sequence: int = 0, run: str = "r", device_class: str = "", owner: str = "me") -> Waiting:
    return Waiting(order, run, device, device_class, sequence, owner)


def d(
    device: str, host: str = "", device_class: str = "k", leased_to: str | None = None, lacks: frozenset[str] = frozenset(),
    local_s: int | None = None,
) -> Ready:  # fmt: skip
    return Ready(device, device_class, host or f"host-{device}", leased_to, lacks, local_s)


NIGHT, NOON = Window(79_200, 18_000), 43_200
ON_A = Underway("9", "a", "h", "me")
ANNA_1, ANNA_2 = w("1", "a", 1, "r1", owner="anna"), w("2", "a", 2, "r2", owner="anna")
BOB_3 = w("3", "a", 3, "r3", owner="bob")

CASES = {
    "nothing waits": Case((), (d("a"),), ()),
    "nobody is ready": Case((w("1", "a"),), (), ()),
    "another device's order": Case((w("1", "b"),), (d("a"),), ()),
    "one runs, one is prefetched": Case((w("1", "a", 1), w("2", "a", 2), w("3", "a", 3)), (d("a"),), (("1", "a"), ("2", "a"))),
    "only the free place is filled": Case((w("2", "a", 2), w("3", "a", 3)), (d("a", "h"),), (("2", "a"),), (ON_A,)),
    "a full host gets nothing": Case((w("3", "a", 3),), (d("a", "h"),), (), (ON_A, Underway("8", "a", "h"))),
    "neighbours take turns": Case((w("1", "a", 1), w("2", "b", 2)), (d("a", "h"), d("b", "h")), (("1", "a"),)),
    "no prefetch beside a measuring neighbour": Case((w("2", "b", 2),), (d("a", "h"), d("b", "h")), (), (ON_A,)),
    "it is the neighbour's turn": Case(
        (w("1", "a", 1), w("2", "b", 2)), (d("a", "h"), d("b", "h")), (("2", "b"),), device_turns={"a": 5, "b": 4}
    ),
    "a busy device prefetches if nobody else waits": Case((w("2", "a", 2),), (d("a", "h"), d("b", "h")), (("2", "a"),), (ON_A,)),
    "two hosts work at the same time": Case((w("1", "a", 1), w("2", "b", 2)), (d("a"), d("b")), (("1", "a"), ("2", "b"))),
    "an order of a class goes to one of it": Case(
        (w("1", "", 1, device_class="k"), w("2", "", 2, device_class="other")), (d("a"), d("b")), (("1", "a"),)
    ),
    "an order of a class goes to none that its run does not name": Case(
        (replace(w("1", "", 1, device_class="k"), devices=frozenset({"b", "c"})),), (d("a"), d("b")), (("1", "b"),)
    ),
    "an order of a class goes to none that it does not name": Case(
        (replace(w("1", "", 1, device_class="k"), devices=frozenset({"a", "b"}), only_on=frozenset({"b", "c"})),),
        (d("a"), d("b"), d("c")),
        (("1", "b"),),
    ),
    "an order goes where it is that time of the day": Case(
        (replace(w("1", "", 1, device_class="k"), window=NIGHT),), (d("a", local_s=NOON), d("b", local_s=0), d("c")), (("1", "b"),)
    ),
    "by day others are served": Case((replace(w("1", "a", 1), window=NIGHT), w("2", "a", 2)), (d("a", local_s=NOON),), (("2", "a"),)),
    "an order goes to agents that know it": Case(
        (replace(w("1", "", 1, device_class="k"), features=frozenset({"x", "y"})),),
        (d("a", lacks=frozenset({"y"})), d("b", lacks=frozenset({"z"}))),
        (("1", "b"),),
    ),
    "idle hosts first, then prefetch": Case(
        (w("1", "", 1, device_class="k"), w("2", "", 2, device_class="k"), w("3", "", 3, device_class="k")),
        (d("a"), d("b")),
        (("1", "a"), ("2", "b"), ("3", "a")),
    ),
    "runs take turns": Case((w("1", "a", 1, "r1"), w("2", "a", 2, "r1"), w("3", "a", 3, "r2")), (d("a"),), (("1", "a"), ("3", "a"))),
    "the run that waited longest": Case(
        (w("1", "a", 1, "r1"), w("3", "a", 3, "r2")), (d("a"),), (("3", "a"), ("1", "a")), run_turns={"r1": 2, "r2": 1}
    ),
    "a silent neighbour's order still holds the host": Case((w("1", "a"),), (d("a", "h"),), (), (Underway("9", "gone", "h"),)),
    "owners take turns, however many runs they have": Case((ANNA_1, ANNA_2, BOB_3), (d("a"),), (("1", "a"), ("3", "a"))),
    "who used less comes first": Case(
        (ANNA_1, BOB_3), (d("a", "h"),), (("3", "a"), ("1", "a")), used={("h", "anna"): 2.0, ("h", "bob"): 1.0}
    ),
    "and again while it is so": Case(
        (ANNA_1, BOB_3, w("4", "a", 4, "r3", owner="bob")), (d("a", "h"),), (("3", "a"), ("4", "a")), used={("h", "anna"): 2.0}
    ),
    "what was used elsewhere does not count": Case((ANNA_1, BOB_3), (d("a", "h"),), (("1", "a"), ("3", "a")), used={("g", "anna"): 9.0}),
    "who holds a place waits for the other": Case((ANNA_1, BOB_3), (d("a", "h"),), (("3", "a"),), (Underway("9", "a", "h", "anna"),)),
    "a leased device is its holder's": Case((ANNA_1, BOB_3), (d("a", leased_to="bob"),), (("3", "a"),)),
    "a lease takes nothing from others elsewhere": Case(
        (w("1", "", 1, device_class="k", owner="anna"), w("2", "", 2, device_class="k", owner="bob")),
        (d("a", leased_to="bob"), d("b")),
        (("2", "a"), ("1", "b")),
    ),
    "a lease whose holder wants nothing": Case((ANNA_1,), (d("a", leased_to="bob"), d("b")), ()),
}


@pytest.mark.parametrize("name", CASES)
def test_table(name: str) -> None:
    case = CASES[name]
    expected = [Assignment(*pair) for pair in case.expected]
    for waiting in (case.waiting, case.waiting[::-1]):
        for ready in (case.ready, case.ready[::-1]):
            assert assign(waiting, ready, case.underway, case.device_turns, case.run_turns, case.used) == expected


World = tuple[list[Waiting], list[Ready], list[Underway], dict[str, int], dict[tuple[str, str], float]]
NAMES = "abcde"
OWNERS = st.sampled_from(["anna", "bob"])
WORDS = st.frozensets(st.sampled_from(["energy", "window"]), max_size=1)
NAMED = st.just(frozenset[str]()) | st.frozensets(st.sampled_from(NAMES), min_size=1)
DEVICES = st.lists(
    st.builds(
        d, st.sampled_from(NAMES), st.sampled_from("xyz"), st.sampled_from("kl"), st.none() | OWNERS, WORDS,
        st.none() | st.sampled_from([0, NOON]),
    ),
    unique_by=lambda r: r.device,
)  # fmt: skip
ORDER = st.builds(
    Waiting, st.integers(0, 30).map(str), st.sampled_from(["r1", "r2"]), st.sampled_from(["", *NAMES]), st.sampled_from("kl"),
    st.integers(0, 9), OWNERS, WORDS, NAMED, NAMED, st.none() | st.just(NIGHT),
)  # fmt: skip


@st.composite
def worlds(draw: st.DrawFn) -> World:
    ready = draw(DEVICES)
    held = draw(st.lists(st.sampled_from(ready), max_size=3)) if ready else []
    orders = draw(st.lists(ORDER, unique_by=lambda o: o.order, max_size=12))
    turns = draw(st.dictionaries(st.sampled_from(NAMES), st.integers(1, 9)))
    used = draw(st.dictionaries(st.tuples(st.sampled_from("xyz"), OWNERS), st.floats(0, 100)))
    return orders, ready, [Underway(f"u{i}", r.device, r.host, draw(OWNERS)) for i, r in enumerate(held)], turns, used


def fits(order: Waiting, device: Ready) -> bool:
    there = order.device == device.device if order.device else order.device_class == device.device_class
    named = device.device in (order.devices or NAMES) and device.device in (order.only_on or NAMES)
    known = not order.features & device.lacks
    at_night = order.window is None or device.local_s == 0
    return there and named and known and at_night and device.leased_to in (None, order.owner)


@settings(max_examples=150, deadline=None)
@given(worlds(), st.integers(0, 10**6))
def test_order_of_arguments_does_not_matter(world: World, seed: int) -> None:
    waiting, ready, underway, turns, used = world
    first = assign(waiting, ready, underway, turns, {}, used)
    for values in (waiting, ready, underway):
        random.Random(seed).shuffle(values)  # type: ignore[arg-type]
    assert assign(waiting, ready, underway, turns, {}, used) == first


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_every_assignment_is_allowed(world: World) -> None:
    waiting, ready, underway, turns, used = world
    assignments = assign(waiting, ready, underway, turns, {}, used)
    orders, devices = {o.order: o for o in waiting}, {r.device: r for r in ready}
    assert len({a.order for a in assignments}) == len(assignments)
    load = Counter(u.host for u in underway)
    running = {u.host: {v.device for v in underway if v.host == u.host} for u in underway}
    for a in assignments:
        device = devices[a.device]
        assert fits(orders[a.order], device)
        assert a.device in running.setdefault(device.host, {a.device})  # never beside a neighbour that measures
        load[device.host] += 1
        assert load[device.host] <= 2


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_no_host_is_idle_while_something_waits_for_it(world: World) -> None:
    waiting, ready, underway, turns, used = world
    assignments = assign(waiting, ready, underway, turns, {}, used)
    taken = {a.order for a in assignments}
    hosts = {r.device: r.host for r in ready}
    occupied = {u.host for u in underway} | {hosts[a.device] for a in assignments}
    idle = [(o, r) for o in waiting for r in ready if fits(o, r) and o.order not in taken and r.host not in occupied]
    assert idle == []


def test_everyone_is_served_in_turn() -> None:
    """Neighbours with long queues of two runs."""
    waiting = [w(f"{run}-{device}-{i}", device, i, run) for device in "ab" for run in ("r1", "r2") for i in range(3)]
    turns: dict[str, int] = {}
    runs: dict[str, int] = {}
    served: list[str] = []
    while waiting:
        picked = assign(waiting, [d("a", "h"), d("b", "h")], [], turns, runs, {})[0]
        order = next(o for o in waiting if o.order == picked.order)
        waiting.remove(order)
        turns[picked.device] = runs[order.run] = len(served) + 1
        served.append(picked.device)
    assert served == ["a", "b"] * 6
