"""Whose a campaign is: its owner and admins work on it, others look. In one process, and by certificates over TLS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from controller.client import Client
from controller.connection import Connection
from controller.control import Control
from controller.serve import Serving
from edgefarm.enrolment import enroll
from edgefarm.errors import Denied, EdgefarmError
from edgefarm.model import HoldKind, OrderState, Run
from tests.fakes.orders import an_order
from tests.integration.serving import join_address, serving

Login = Callable[[str, str], Client]
REMEDY = "give yours another 'name:' in the fleet file, or ask anna or an admin"


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "controller") as made:
        yield made


@pytest.fixture
def login(controller: Serving, tmp_path: Path) -> Iterator[Login]:
    """Clients of users, each with a certificate of its own."""
    with ExitStack() as held:

        def client(name: str, role: str) -> Client:
            token = controller.registry.add_user(name, role, "root")
            identity = enroll(join_address(controller), token, "", tmp_path / "users" / name)
            connection = held.enter_context(closing(Connection(identity.main, identity, 20.0)))
            return Client(connection, tmp_path / "fetched" / name)

        yield client


def opened(control: Control, spec: str = "spec") -> Run:
    return control.open_run("zoo", spec, "{}", "this is not asked", {})


def test_another_user_s_campaign_is_refused_with_its_owner_and_what_to_do(login: Login) -> None:
    anna, bob = login("anna", "operator"), login("bob", "operator")
    assert opened(anna).owner == "anna"
    for call in (lambda: opened(bob), lambda: opened(bob, "another spec"), lambda: bob.drive("zoo", "his")):
        with pytest.raises(Denied, match=f"campaign 'zoo' is anna's, its newest run is 'zoo@1': {REMEDY}"):
            call()
    assert [(r.name, r.owner) for r in bob.runs("zoo")] == [("zoo@1", "anna")]
    anna.drive("zoo", "hers")
    assert opened(anna, "another spec").name == "zoo@2"


def test_others_may_look_at_a_run_and_not_touch_it(login: Login) -> None:
    anna, bob = login("anna", "operator"), login("bob", "operator")
    run = opened(anna)
    anna.submit([an_order("o1", run="zoo@1")])
    calls: list[Callable[[], object]] = [
        lambda: bob.update_run(replace(run, state="done")),
        lambda: bob.submit([an_order("o2", run="zoo@1")]),
        lambda: bob.cancel("zoo@1", ["o1"]),
        lambda: bob.retry("zoo@1"),
        lambda: bob.cancel_run("zoo@1"),
    ]
    for call in calls:
        with pytest.raises(Denied, match="run 'zoo@1' is anna's: only anna or an admin may change or cancel it"):
            call()
    assert [(s.order.id, s.state) for s in bob.progress("zoo@1").orders] == [("o1", OrderState.QUEUED)]
    assert anna.cancel_run("zoo@1").state == "cancelled"


def test_asking_before_there_is_a_run_gives_no_right_to_it(login: Login) -> None:
    anna, bob = login("anna", "operator"), login("bob", "operator")
    with pytest.raises(EdgefarmError, match="no run 'zoo@1'"):
        bob.cancel_run("zoo@1")
    opened(anna)
    with pytest.raises(Denied, match="run 'zoo@1' is anna's"):
        bob.cancel_run("zoo@1")


def test_an_admin_goes_on_with_everybody_s_campaign_which_stays_its_owner_s(login: Login) -> None:
    anna, admin = login("anna", "operator"), login("ada", "admin")
    run = opened(anna)
    admin.drive("zoo", "the admin's")
    assert opened(admin) == run
    admin.submit([an_order("o1", run="zoo@1")])
    admin.update_run(replace(run, state="measuring", owner="ada"))
    assert (opened(admin, "another spec").name, opened(admin, "another spec").owner) == ("zoo@2", "anna")
    assert [(r.name, r.state, r.owner) for r in anna.runs("zoo")] == [("zoo@1", "measuring", "anna"), ("zoo@2", "open", "anna")]
    admin.leave("zoo", "the admin's")
    anna.drive("zoo", "hers")
    assert [h.holder for h in anna.holds() if h.kind is HoldKind.DRIVER] == ["anna on hers"]


def test_without_a_server_in_between(controller: Serving) -> None:
    farm = controller.farm
    assert farm.open_run("zoo", "spec", "{}", "anna", {}, admin=False).owner == "anna"
    with pytest.raises(Denied, match=REMEDY):
        farm.open_run("zoo", "spec", "{}", "bob", {}, admin=False)
    assert farm.open_run("zoo", "spec", "{}", "bob", {}).owner == "anna", "who may open the state folder may go on"
    farm.check_owner("anna", ["zoo@1"])
    with pytest.raises(Denied, match="run 'zoo@1' is anna's"):
        farm.check_owner("bob", ["unknown@1", "zoo@1"])
