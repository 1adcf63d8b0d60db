"""An agent process for tests of hosted mode. The rest of the arguments is as for `edge-agent`; the first says how it behaves:

good | refuse | die | die-once | never-probed | stubborn, and for single devices `,NAME=…` after it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgefarm.model import Welcome
from tests.fakes.agent import FakeAgent
from tests.fakes.orders import a_device, a_hello


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("behaviour")
    parser.add_argument("verb")
    for name in ("--controller", "--name", "--runtimes", "--threads", "--metrics"):
        parser.add_argument(name, default="")
    parser.add_argument("--label", action="append", default=[])
    parser.add_argument("--state", type=Path)
    parser.add_argument("--secret-fd", type=int)
    options = parser.parse_args()
    general, *single = options.behaviour.split(",")
    options.behaviour = dict(s.split("=") for s in single).get(options.name, general)
    (options.state / "pids").open("a").write(f"{os.getpid()}\n")
    (options.state / "arguments").write_text(repr(sys.argv[1:]))
    lives = len((options.state / "pids").read_text().split())
    print(f"life {lives} begins", flush=True)
    if options.behaviour == "refuse":
        print(f"{options.name}: port 80 is in use", file=sys.stderr)
        return 2
    if options.behaviour == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if options.behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with os.fdopen(options.secret_fd, "rb", buffering=0) as pipe:
        secret = b""
        while not secret.endswith(b"\n"):
            secret += pipe.read(1) or b"\n"
        with FakeAgent(options.controller, options.name, secret.strip().decode()) as agent:
            agent.attach(a_hello(a_device(options.name), f"life-{lives}", probed=options.behaviour != "never-probed"))
            agent.wait(Welcome)
            if options.behaviour == "die-once" and lives == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            while pipe.read(1):
                pass
            if options.behaviour == "stubborn":
                signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
