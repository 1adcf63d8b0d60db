"""Devices that speak to a farm directly, and the clock that tests turn."""

from __future__ import annotations

from dataclasses import dataclass

from controller.farm import Farm
from controller.sessions import Peer, Session
from edgefarm.model import Device, Hello, Welcome
from tests.fakes.orders import a_device, a_hello


@dataclass
class FakeClock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class FakeDevice:
    """A device that speaks to the farm directly."""

    def __init__(self, farm: Farm, device: Device | None = None) -> None:
        self.farm, self.device = farm, device or a_device()
        self.secret = farm.doorkeeper.invite(self.device.name)
        self.token = ""
        self.session: Session | None = None

    def attach(self, hello: Hello | None = None) -> list[object]:
        peer = Peer(self.device.name, session=self.token) if self.token else Peer(self.device.name, self.secret)
        self.session = self.farm.attach(peer, hello or a_hello(self.device), lambda: None)
        welcome, *rest = self.session.take()
        assert isinstance(welcome, Welcome)
        self.token = welcome.session
        return list(rest)

    def restart(self, instance: str, hello: Hello | None = None) -> list[object]:
        self.token, self.secret = "", self.farm.doorkeeper.invite(self.device.name)
        return self.attach(hello or a_hello(self.device, instance))

    def say(self, *bodies: object) -> list[object]:
        assert self.session is not None
        for body in bodies:
            self.farm.receive(self.session, body)  # type: ignore[arg-type]
        return list(self.session.take())

    def hang_up(self) -> None:
        assert self.session is not None
        self.farm.detach(self.session)
