"""Which cores a runner measures on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bench.affinity import Cores, choose, numbers, ranges
from edgefarm.errors import UserError
from tests.fixtures.trees import ALDER_LAKE, BARE, ORIN, RK3588, plant

CORES = st.frozensets(st.integers(0, 9999), min_size=1, max_size=64)


@given(CORES)
def test_a_list_in_its_shortest_form_means_the_same_cores(cores: frozenset[int]) -> None:
    shown = ranges(cores)
    assert numbers(shown) == cores
    assert not any(int(a.split("-")[-1]) + 1 == int(b.split("-")[0]) for a, b in zip(shown.split(","), shown.split(",")[1:]))


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "1-", "0x1", "12345", "0;1"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="list of cores"):
        numbers(text)


@pytest.mark.parametrize(
    ("tree", "big", "little"),
    [(RK3588, (4, 5, 6, 7), (0, 1, 2, 3)), (ALDER_LAKE, (0, 1, 2, 3), (4, 5, 6, 7))],
    ids=["rk3588", "alder-lake"],
)
def test_big_and_little(tmp_path: Path, tree: Mapping[str, str], big: tuple[int, ...], little: tuple[int, ...]) -> None:
    plant(tree, tmp_path)
    assert choose("big", tmp_path, range(8)) == Cores(big, "big", pinned=True)
    assert choose("little", tmp_path, range(8)) == Cores(little, "little", pinned=True)
    assert str(choose("little", tmp_path, range(8))) == f"{ranges(little)} (little)"
    assert choose("all", tmp_path, range(8)) == Cores(tuple(range(8)))


def test_three_kinds_of_cores_have_a_little_one(tmp_path: Path) -> None:
    capacities = [250, 250, 250, 250, 870, 870, 870, 1024]  # a phone's: prime, big and little
    plant({f"sys/devices/system/cpu/cpu{n}/cpu_capacity": f"{c}\n" for n, c in enumerate(capacities)}, tmp_path)
    assert choose("big", tmp_path, range(8)).numbers == (4, 5, 6, 7)


@pytest.mark.parametrize("tree", [ORIN, BARE], ids=["alike", "unknown"])
def test_where_all_are_alike_all_are_big_and_none_is_little(tmp_path: Path, tree: Mapping[str, str]) -> None:
    plant(tree, tmp_path)
    assert choose("big", tmp_path, range(6)) == Cores((0, 1, 2, 3, 4, 5), "big", pinned=False)
    with pytest.raises(UserError, match=r"cpus = 'little': .*0-5.* of one kind; use 'all'"):
        choose("little", tmp_path, range(6))


def test_cores_that_are_not_allowed_are_named(tmp_path: Path) -> None:
    assert choose("1,2", tmp_path, range(4)) == Cores((1, 2), "1,2", pinned=True)
    with pytest.raises(UserError, match=r"cpus = '2-5': no core 4-5 for the agent here; it may use 0-3"):
        choose("2-5", tmp_path, range(4))


def test_only_allowed_cores_are_compared(tmp_path: Path) -> None:
    plant(RK3588, tmp_path)
    assert choose("big", tmp_path, [2, 3, 4]).numbers == (4,)
    assert choose("big", tmp_path, [0, 1]) == Cores((0, 1), "big", pinned=False)
