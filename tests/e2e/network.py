"""Hosts with a network between them, on this machine: namespaces on one switch whose ports can be slow, lossy or cut.

    controller   driver   any host       gateway (NAT)   relay (a TCP proxy that delays)
        └───────────┴─────────┴── switch ──────┴──────────────┘
                                  (bridge)     │              │
                                             hidden          far

Each host has a boot id of its own, as machines do. A cut drops frames both ways and answers nothing, so connections hang as they do
when a cable is pulled far away. Everything ends with the `with` block: processes, namespaces and, in them, links and rules.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from tests.e2e.machine import run

NAME = "farm.test"  # of the controller, in every host's /etc/hosts
PORTS = (7443, 7444)  # where a controller is joined, and serves; a relay passes them on
_LAN = ipaddress.ip_network("10.77.0.0/24")
_BEHIND = {"gateway": ipaddress.ip_network("10.78.0.0/24"), "relay": ipaddress.ip_network("10.79.0.0/24")}
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_HOSTS = Path("/etc/netns")  # what `ip netns exec` shows a host as /etc
_ENDS_WITHIN_S = 20.0
_RULES = """
table bridge links {
    set cut { type ifname; }
    counter dropped { }
    chain forward {
        type filter hook forward priority 0;
        iifname @cut drop
        oifname @cut drop
    }
}
"""
_MASQUERADE = """
table ip nat {
    chain out {
        type nat hook postrouting priority 100;
        oifname "lan" masquerade
    }
}
"""


def require() -> None:
    """Skips, saying why, where no such network can be made."""
    what = "NOT TESTED: a fleet across network namespaces"
    if missing := [tool for tool in ("ip", "tc", "nft", "ss") if shutil.which(tool) is None]:
        pytest.skip(f"{what}: no {', '.join(missing)} here (Debian: iproute2, nftables)")
    if os.geteuid() != 0:
        pytest.skip(f"{what}: only root can make them")


@dataclass(frozen=True)
class Host:
    """A machine in the network.

    Attributes:
        port: of the switch, behind which it is: its own, its gateway's or its relay's.
        boot_id: a file with the one that programs on this host see.
    """

    name: str
    namespace: str
    address: str
    port: str
    boot_id: Path

    def command(self, *words: str) -> list[str]:
        """What runs `words` on this host, as a process that they replace."""
        script = f'mount --bind "$0" {_BOOT_ID} && exec "$@"'
        return ["ip", "netns", "exec", self.namespace, "sh", "-c", script, str(self.boot_id), *words]

    def run(self, *words: str, timeout_s: float = 120.0) -> str:
        """Runs a command there to its end; returns what it printed."""
        return run(*self.command(*words), timeout_s=timeout_s)


class Network:
    """The switch and its hosts. Use it as a context manager."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self._prefix = f"ef{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        self._held = contextlib.ExitStack()
        self._free = {network: iter(network.hosts()) for network in (_LAN, *_BEHIND.values())}
        self.processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Network:
        with contextlib.ExitStack() as held:
            self._folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="edgefarm-network-")))
            self._held = held
            self._namespace(self._switch)
            run("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
            run("ip", "-n", self._switch, "link", "set", "bridge", "up")
            self._rules(_RULES)
            held.callback(self._end_processes)
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    # Hosts

    def host(self, name: str) -> Host:
        """A host on the switch."""
        made = self._host(name, port=name, network=_LAN)
        run("ip", "link", "add", "lan", "netns", made.namespace, "type", "veth", "peer", "name", name, "netns", self._switch)
        run("ip", "-n", self._switch, "link", "set", name, "master", "bridge", "up")
        self._up(made.namespace, "lan", made.address)
        return made

    def hidden(self, name: str) -> Host:
        """A host behind a NAT gateway: it can call the others, they can't call it."""
        gateway = self.host("gateway")
        self._rules(_MASQUERADE, gateway.namespace)
        run("ip", "netns", "exec", gateway.namespace, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        made, inner = self._behind(name, gateway)
        run("ip", "-n", made.namespace, "route", "add", "default", "via", inner)
        return made

    def far(self, name: str, delay_s: float) -> Host:
        """A host whose only neighbour is a relay that passes the controller's ports on, each byte `delay_s` later, both ways."""
        relay = self.host("relay")
        made, inner = self._behind(name, relay)
        self.tell_names(made, inner)
        for port in PORTS:
            words = ("-m", "tests.delaying", f"{inner}:{port}", f"{NAME}:{port}", str(delay_s))
            proxy = self.start(relay, sys.executable, *words, stdout=subprocess.PIPE)
            assert proxy.stdout is not None
            assert proxy.stdout.readline(), "the relay ended at once"
        return made

    def _behind(self, name: str, box: Host) -> tuple[Host, str]:
        """A host on a cable of its own to `box`; returns it, and the address of `box` there."""
        network = _BEHIND[box.name]
        inner = str(next(self._free[network]))
        made = self._host(name, port=box.name, network=network)
        run("ip", "link", "add", "lan", "netns", made.namespace, "type", "veth", "peer", "name", "inner", "netns", box.namespace)
        self._up(box.namespace, "inner", inner)
        self._up(made.namespace, "lan", made.address)
        return made, inner

    def _host(self, name: str, port: str, network: ipaddress.IPv4Network) -> Host:
        namespace, boot_id = f"{self._prefix}-{name}", self._folder / f"{name}.boot_id"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        self._namespace(namespace)
        made = Host(name, namespace, str(next(self._free[network])), port, boot_id)
        self._names_file(made).parent.mkdir(parents=True)
        self._held.callback(shutil.rmtree, self._names_file(made).parent)
        self.hosts[name] = made
        self.tell_names(made, "0.0.0.0")
        return made

    def _namespace(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._held.callback(run, "ip", "netns", "delete", name, check=False)
        run("ip", "-n", name, "link", "set", "lo", "up")

    @staticmethod
    def _up(namespace: str, link: str, address: str) -> None:
        run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", link)
        # Without this a frame of the kernel holds up to 64 KiB: what is lost or slowed down would not be packets.
        run("ip", "-n", namespace, "link", "set", link, "gso_max_segs", "1", "up")

    def _names_file(self, host: Host) -> Path:
        return _HOSTS / host.namespace / "hosts"

    def tell_names(self, host: Host, controller: str) -> None:
        """Sets the controller's address in a host's /etc/hosts; running programs see it."""
        with self._names_file(host).open("w") as file:  # the same file: it is mounted over the host's own
            file.write(f"127.0.0.1 localhost\n{controller} {NAME}\n")

    # Links

    def limit_rate(self, host: Host, bytes_per_s: int) -> None:
        """Makes a host's link slow, in both directions."""
        rate = ("root", "tbf", "rate", f"{8 * bytes_per_s}bit", "burst", "16kb", "latency", "300ms")
        run("tc", "-n", self._switch, "qdisc", "add", "dev", host.port, *rate)
        run("tc", "-n", host.namespace, "qdisc", "add", "dev", "lan", *rate)

    def lose(self, host: Host, percent: int) -> None:
        """Makes a host's link lose packets, in both directions."""
        for way in ("iifname", "oifname"):
            lost = f'{way} "{host.port}" numgen random mod 100 < {percent} counter name dropped drop'
            self._rules(f"add rule bridge links forward {lost}")

    def dropped(self) -> int:
        """Packets that lossy links have lost."""
        told = self._rules("list counter bridge links dropped")
        found = re.search(r"packets (\d+)", told)
        assert found, told
        return int(found[1])

    @contextlib.contextmanager
    def cut(self, host: Host) -> Iterator[None]:
        """No frame passes a host's port inside the block."""
        self._rules(f'add element bridge links cut {{ "{host.port}" }}')
        try:
            yield
        finally:
            self._rules(f'delete element bridge links cut {{ "{host.port}" }}')

    def received(self, host: Host) -> int:
        """Bytes that the switch has sent out of a host's port, with all headers."""
        (told,) = json.loads(run("ip", "-n", self._switch, "-s", "-j", "link", "show", "dev", host.port))
        return int(told["stats64"]["tx"]["bytes"])

    def move(self, host: Host) -> str:
        """Gives a host on the switch another address, and takes the old one away; returns the new one."""
        fresh = str(next(self._free[_LAN]))
        run("ip", "-n", host.namespace, "address", "flush", "dev", "lan")
        run("ip", "-n", host.namespace, "address", "add", f"{fresh}/24", "dev", "lan")
        return fresh

    def _rules(self, text: str, namespace: str = "") -> str:
        command = ["ip", "netns", "exec", namespace or self._switch, "nft", "-f", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{text}\n{done.stderr}"
        return done.stdout

    # Processes

    def start(
        self, host: Host, *words: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None,
        stdout: int | IO[str] = subprocess.DEVNULL, stderr: int | IO[str] = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:  # fmt: skip
        """Starts a program on a host; it ends with the network at the latest."""
        process = subprocess.Popen(
            host.command(*words), cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, text=True
        )
        self.processes.append(process)
        return process

    def _end_processes(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_ENDS_WITHIN_S)
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
