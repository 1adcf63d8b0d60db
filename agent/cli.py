"""`edge-agent`: what a person (or the controller's command) types on a device."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.arguments import names, option, pair, sizes
from edgefarm import __version__
from edgefarm.errors import INTERRUPTED, EdgefarmError, StorageError, UserError

if TYPE_CHECKING:
    from agent.bench.site import Surroundings
    from agent.config import AgentFile
    from agent.supervisor import Config

_SECRET_BYTES = 4096
_MOST_THREADS = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code, with the reason on stderr."""
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return int(options.command(options) or 0)
    except EdgefarmError as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # of the state folder, or where temporary files go: full, read-only, failing
        print(f"edge-agent: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return StorageError.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    from edgefarm import heap

    heap.tune()
    from agent.supervisor import Supervisor

    config = _config(options)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    agent = Supervisor(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    if options.secret_fd is not None:
        threading.Thread(target=_watch_parent, args=(options.secret_fd, agent.stop), name="parent", daemon=True).start()
    code = 0
    try:
        agent.run()
    except EdgefarmError as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        code = error.exit_code
    except Exception:
        logging.getLogger("agent").exception("a bug of edge-agent")
        code = 1
    # Threads of gRPC may still wait for the network; nothing is left to save.
    sys.stderr.flush()
    os._exit(code)


def _config(options: argparse.Namespace) -> Config:
    """The file's settings under those of the command line. Raises UserError, StorageError."""
    from agent.enrolment import place_of
    from agent.supervisor import Config

    file = _file(options)
    state = _state(options, file)
    place = place_of(options.controller or file.controller, options.name or file.name, state)
    around = _surroundings(file, state)
    return Config(
        controller=place.address, name=place.name, state=state, enrolled=place.identity is not None,
        threads=_threads(file.threads if options.threads is None else options.threads, around), surroundings=around,
        runner_socket=file.runner_socket, memory_bytes=file.memory_bytes, meter=file.meter,
        runtimes=_runtimes(options, file), labels={**file.labels, **dict(options.label)}, metrics=options.metrics or file.metrics or None,
        cache_bytes=options.cache_bytes or file.cache_bytes, lock=options.measure_lock,
        secret=_read_secret(options.secret_fd) if options.secret_fd is not None else "",
    )  # fmt: skip


def _surroundings(file: AgentFile, state: Path) -> Surroundings:
    """What `[measure]` of the file asks for. Raises UserError for cores that the device does not have."""
    from agent.bench.affinity import choose
    from agent.bench.gate import Gate
    from agent.bench.site import Surroundings

    gate = Gate(file.start_below_celsius, file.start_wait_s)
    return Surroundings(choose(file.cpus), gate, file.governor, state / "governor.json")


def _runtimes(options: argparse.Namespace, file: AgentFile) -> Sequence[str] | None:
    from agent.runtimes import RUNTIMES

    runtimes = options.runtimes or file.runtimes
    if unknown := sorted(set(runtimes or ()) - set(RUNTIMES)):
        raise UserError(f"runtimes {','.join(unknown)}: unknown; known are {', '.join(sorted(RUNTIMES))}")
    return runtimes


def _file(options: argparse.Namespace) -> AgentFile:
    """What --config names; else the device's own file. An agent that somebody else started has neither: what it is told is all."""
    from agent import config

    if options.config is not None:
        return config.load(options.config)
    hosted = getattr(options, "secret_fd", None) is not None
    return (None if hosted else config.load_default()) or config.AgentFile(state=Path("edge-agent"))


def _state(options: argparse.Namespace, file: AgentFile | None = None) -> Path:
    state: Path = options.state or (file or _file(options)).state
    return state


def _read_secret(descriptor: int) -> str:
    """The first line of the inherited pipe. Raises UserError."""
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < _SECRET_BYTES and (byte := os.read(descriptor, 1)):
            line += byte
        return bytes.fromhex(line.strip().decode("ascii")).hex()
    except OSError as error:
        raise UserError(f"--secret-fd {descriptor}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--secret-fd {descriptor}: its first line is not a secret in hex digits") from error


def _watch_parent(descriptor: int, gone: Callable[[], None]) -> None:
    """Calls `gone` once nobody holds the other end of the pipe."""
    try:
        while os.read(descriptor, _SECRET_BYTES):
            pass
    except OSError:
        pass
    gone()


def _probe(options: argparse.Namespace) -> None:
    from agent import probe
    from agent.identity import become_owner
    from agent.runner.limits import limits_in_force

    file = _file(options)
    become_owner(_state(options, file))  # what it says is true of the agent, not of root
    around = _surroundings(file, _state(options, file))
    threads, runtimes = _threads(file.threads if options.threads is None else options.threads, around), _runtimes(options, file)
    limits = {**limits_in_force(in_unit=file.runner_socket is not None), **_isolation(file.runner_socket)}
    found = probe.probe_capabilities(runtimes, unit_socket=file.runner_socket)
    fingerprint = {**probe.fingerprint(threads, allowed=runtimes), **around.fingerprint()}  # as the controller is told
    if options.json:
        _print_json(
            {
                "labels": dict(probe.labels(allowed=runtimes, meter=file.meter)), "fingerprint": fingerprint, "threads": threads,
                "power": probe.power_sources(file.meter),
                "emulated": bool(probe.emulation()), "capabilities": [vars(c) for c in found], "runner_limits": limits,
            }
        )  # fmt: skip
        return
    for key, value in {"emulated": "no", **fingerprint}.items():
        print(f"{key:14} {value}")
    print()
    for name, limit in limits.items():
        print(f"{name:14} {limit}")
    print()
    for name, said in probe.power_sources(file.meter).items():
        print(f"{'no' if said['reason'] else 'yes':4} power {said['reason'] or name + ': ' + ', '.join(said['rails'])}")
    print()
    for capability in found:
        name = " ".join(filter(None, (capability.runtime, capability.version, capability.provider)))
        print(f"{'yes' if capability.available else 'no':4} {name}{': ' + capability.reason if capability.reason else ''}")


def _isolation(unit_socket: Path | None) -> dict[str, str]:
    from agent.runner.unit import isolation

    return {"isolation": "a child process of the agent's user"} if unit_socket is None else isolation(unit_socket)


def _bench(options: argparse.Namespace) -> int:
    from agent.offline import bench_file, loadgen_file, scenario_of

    scenario = scenario_of(options.scenario, options.rate, options.batch_sizes, options.duration if not options.loadgen else None)
    common: dict[str, Any] = {
        "runtime": options.runtime, "options": {**dict(options.option), "threads": _threads(options.threads)},
        "inputs": options.inputs, "scenario": scenario, "lock": options.measure_lock,
    }  # fmt: skip
    if options.loadgen:
        more = {"seconds": options.duration, "target_latency_ms": options.target_latency_ms, "out": options.out}
        report = loadgen_file(options.model, **common, **more)
    else:
        report = bench_file(options.model, **common, launches=options.launches)
    if options.json:
        _print_json(report)
    else:
        print(report["summary"])
    return 0


def _profile(options: argparse.Namespace) -> None:
    from agent.profiling import profile_file, shown

    report = profile_file(
        options.model, runtime=options.runtime, options={**dict(options.option), "threads": _threads(options.threads)},
        inputs=options.inputs, inferences=options.inferences, lock=options.measure_lock,
    )  # fmt: skip
    if options.json:
        _print_json(report)
    else:
        print(shown(report))


def _status(options: argparse.Namespace) -> None:
    from agent.offline import read_status

    status = read_status(_owned(options))
    if options.json:
        _print_json(status)
        return
    paused = f", paused since {status['paused_since']}" if status["paused_since"] else ""
    print(f"device {status['id']}, agent {'running' if status['running'] else 'not running'}{paused}")
    print(f"{len(status['unacknowledged'])} attempts that the controller has not acknowledged")
    for deployment in status["deployments"]:
        print(f"{deployment['model']}: generation {deployment['generation']} {deployment['state']} {deployment['reason']}".rstrip())
        print(f"  {deployment['path'] or deployment['digest']}")


def _rollback(options: argparse.Namespace) -> None:
    from agent.offline import roll_back

    for status in roll_back(_owned(options), options.model):
        print(f"{status.model}: back to generation {status.generation}: {status.path}")


def _pause(options: argparse.Namespace) -> None:
    from agent.offline import pause

    pause(_owned(options), resume=options.resume)
    print("measuring goes on" if options.resume else "paused: no launch begins until `edge-agent pause --resume`; deployments still work")


def _owned(options: argparse.Namespace) -> Path:
    from agent.identity import become_owner

    state = _state(options)
    become_owner(state)
    if state.exists() and not os.access(state, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"{state}: only root and its owner may look into it: try sudo")
    return state


def _enroll(options: argparse.Namespace) -> None:
    from agent.enrolment import enroll

    enroll(_owned(options), options.controller, options.token, options.name)


def _renew(options: argparse.Namespace) -> None:
    from agent.enrolment import renew

    renew(_owned(options))


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=1)
    print()


def _threads(asked: int | None, around: Surroundings | None = None) -> int:
    available = len(os.sched_getaffinity(0)) if around is None or around.cores is None else len(around.cores.numbers)
    if asked is not None and not 1 <= asked <= _MOST_THREADS:
        raise UserError(f"--threads {asked}, or threads in agent.toml: must be 1 to {_MOST_THREADS}")
    return asked or available


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edge-agent", description="Measures and runs models on this device.")
    parser.add_argument("--version", action="version", version=f"edge-agent {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_run(verbs)
    probe = _verb(verbs, "probe", _probe, "what this device can do, and why not what it cannot", "edge-agent probe --json")
    _add_place(probe)
    probe.add_argument("--runtimes", type=names, metavar="NAME,NAME", help="prove only these")
    probe.add_argument("--threads", type=int, metavar="N")
    probe.add_argument("--json", action="store_true")
    _add_bench(verbs)
    about = "what takes the time inside of one model, and where it runs, offline"
    profile = _verb(verbs, "profile", _profile, about, "edge-agent profile model.onnx --threads 1")
    _add_model(profile)
    profile.add_argument("--inferences", type=int, default=20, metavar="N", help="to take means of (20)")
    status = _verb(verbs, "status", _status, "what this device holds and runs", "edge-agent status --state /var/lib/edgefarm")
    _add_place(status)
    status.add_argument("--json", action="store_true")
    rollback = _verb(verbs, "rollback", _rollback, "go back to the model before", "edge-agent rollback detector --state /var/lib/edgefarm")
    rollback.add_argument("model", nargs="?", help="default: the only one that is deployed")
    _add_place(rollback)
    pause = _verb(verbs, "pause", _pause, "measure nothing until told otherwise, over restarts too", "edge-agent pause --resume")
    pause.add_argument("--resume", action="store_true", help="measure again")
    _add_place(pause)
    _add_enrolment(verbs)
    return parser


def _add_bench(verbs: Any) -> None:
    bench = _verb(verbs, "bench", _bench, "measure one model, offline", "edge-agent bench model.onnx --threads 1")
    _add_model(bench)
    bench.add_argument("--launches", type=int, metavar="N", help="fresh processes to measure in (10; sustained 3, server 5)")
    bench.add_argument("--scenario", default="paced", metavar="KIND", help="paced (default), offline, sustained or server")
    bench.add_argument("--rate", type=float, metavar="HZ", help="paced: inferences per second, with idle gaps; server: requests per second")
    bench.add_argument("--batch-sizes", type=sizes, default=[], metavar="N,N", help="offline: batches to try (1)")
    bench.add_argument("--duration", type=float, metavar="SECONDS", help="of a launch: sustained (60), server (10); of a LoadGen run (10)")
    bench.add_argument("--loadgen", action="store_true", help="run it under MLPerf LoadGen instead, once")
    bench.add_argument("--out", type=Path, metavar="DIR", help="for LoadGen's logs")
    bench.add_argument("--target-latency-ms", type=float, metavar="MS", help="what 99 %% of requests must keep, under LoadGen's Server")


def _add_model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", type=Path)
    verb.add_argument("--inputs", type=Path, metavar="PACK.npz", help="tensor pack to feed; default: random values of the model's shapes")
    verb.add_argument("--runtime", metavar="NAME", help="default: the first installed one that opens the file")
    verb.add_argument("--option", type=option, action="append", default=[], metavar="KEY=VALUE", help="of the runtime; may be repeated")
    verb.add_argument("--threads", type=int, metavar="N")
    verb.add_argument("--measure-lock", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    verb.add_argument("--json", action="store_true")


def _add_enrolment(verbs: Any) -> None:
    example = "edge-agent enroll --controller farm.example:7443 --token edgefarm1.…"
    enroll = _verb(verbs, "enroll", _enroll, "register with a controller on another machine", example)
    enroll.add_argument("--controller", required=True, metavar="HOST:PORT", help="where 'controller serve' takes devices in")
    token = os.environ.get("EDGEFARM_TOKEN", "")
    enroll.add_argument("--token", default=token, metavar="TOKEN", help="what 'controller token create' printed; or set EDGEFARM_TOKEN")
    enroll.add_argument("--name", default="", metavar="NAME", help="the device's name in the fleet; default: its host name")
    _add_place(enroll)
    renew = _verb(verbs, "renew", _renew, "renew this device's certificate; a running agent does it by itself", "edge-agent renew")
    _add_place(renew)


def _add_place(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--config", type=Path, metavar="FILE", help="default: /etc/edgefarm/agent.toml, if it exists")
    verb.add_argument("--state", type=Path, metavar="DIR", help="the agent's state folder; default: as the file says")


def _add_run(verbs: Any) -> None:
    run = _verb(verbs, "run", _run, "serve a controller", "edge-agent run --controller unix:/run/edgefarm.sock --name bench-1 --state DIR")
    run.add_argument("--controller", metavar="TARGET", help="unix:/path of one on this machine; default: where this device enrolled")
    run.add_argument("--name", metavar="NAME", help="the device's name in the fleet")
    _add_place(run)
    run.add_argument("--runtimes", type=names, metavar="NAME,NAME", help="those it may use; default: all that are installed")
    run.add_argument("--threads", type=int, metavar="N", help="limit for one model; default: all cores that it may use")
    run.add_argument("--label", type=pair, action="append", default=[], metavar="KEY=VALUE", help="may be repeated")
    run.add_argument("--metrics", metavar="HOST:PORT", help="serve Prometheus metrics there; port 0 takes a free one")
    run.add_argument("--cache-bytes", type=int, default=0, metavar="N", help="quota of the artifact cache; default: half of the free space")
    run.add_argument("--secret-fd", type=int, metavar="N", help="inherited pipe: a secret in its first line; its end ends the agent")
    run.add_argument("--measure-lock", type=Path, metavar="FILE", help=argparse.SUPPRESS)


def _verb(verbs: Any, name: str, command: Callable[[argparse.Namespace], Any], text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=f"example: {example}"
    )
    parser.set_defaults(command=command)
    return parser


def script() -> None:
    """Entry point of `python -m agent.cli`."""
    code = main()
    # Threads of gRPC may keep a process that is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    script()
