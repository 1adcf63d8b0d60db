"""Forms of a comparison: table, json, junit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from controller.report.rows import one_line

Document = Mapping[str, Any]
_KEPT = ("within", None)  # of a limit: it holds, or there is none


def table(document: Document) -> str:
    """For people: one block per device, the answer first."""
    lines: list[str] = [f"{document['base']} -> {document['new']}"]
    for device in document["devices"]:
        lines.append(f"\n{device['name']}: {device['text']}")
        lines += [f"  {line}" for line in _about(device)]
    lines += [f"\n{name}: not compared: {why}" for name, why in document["lost"].items()]
    lines.append(f"\n{document['verdict']}: {document['counts']}")
    if "run" in document:
        lines.append(f"kept as {document['run']}")
    return "\n".join(lines) + "\n"


def _about(device: Mapping[str, Any]) -> Iterator[str]:
    if device.get("caveat"):
        yield device["caveat"]
    for side in ("base", "new"):
        if shown := device[side]:
            yield f"{side + ':':<5} {shown['variant']}, {shown['runtime']} {_options(shown['options'])}: {_latency(shown['latency_ns'])}"
    if device["conditions_verdict"]:
        yield f"verdict {device['conditions_verdict']}: {device['conditions_detail']}; {device['way']}"
    if device.get("speedup_by_minima"):
        shown = (f"{name} {_times(device[f'speedup_by_{of}'])}" for name, of in (("typical", "medians"), ("undisturbed", "minima")))
        yield f"inferences: {', '.join(shown)}; {device['decided_by']} decide: {device['decided_because']}"
    if floor := device["noise_floor"]:
        yield f"two copies of the first against each other: {_times(floor)}"
    for name, state in device["gates"].items():
        if state is not None:
            yield f"limit of {name}: {state}{_energy(device) if name == 'energy' else ''}"
    if device["differs"]:
        yield f"not equal: {'; '.join(device['differs'])}"


def _times(ratio: Mapping[str, Any]) -> str:
    ends = f" ({ratio['ci95'][0]:.4f} to {ratio['ci95'][1]:.4f})" if ratio["ci95"] else ""
    return f"{ratio['ratio']:.4f}x{ends}"


def _options(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())


def _latency(latency: Mapping[str, Any] | None) -> str:
    if not latency:
        return "no latency"
    p50 = latency["p50"]
    ends = f" ({p50['ci95'][0] / 1e6:.4f} to {p50['ci95'][1] / 1e6:.4f})" if p50["ci95"] else ""
    return f"p50 {p50['value'] / 1e6:.4f} ms{ends}, n {latency['n']} in {latency['launches']} launches"


def _energy(device: Mapping[str, Any]) -> str:
    known = device["energy"]
    if not known:
        return f" ({device['unavailable'].get('energy', 'unknown')})"
    ends = f" ({100 * known['ci95'][0]:+.2f} to {100 * known['ci95'][1]:+.2f} %)" if known["ci95"] else ""
    return f" ({100 * known['increase']:+.2f} % per inference{ends})"


def as_json(document: Document) -> str:
    """One JSON document."""
    return json.dumps(document, indent=2, allow_nan=False)


def as_junit(document: Document) -> str:
    """One test case per device: it fails beyond a limit or where a side does not run, and is an error where that can't be said."""
    name = f"compare {document['base']} {document['new']}"
    suite = ElementTree.Element("testsuite", name=name)
    cases = [_case(device, document) for device in document["devices"]]
    cases += [("error", device, f"not compared: {why}", "") for device, why in document["lost"].items()]
    for kind, device, message, text in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=name, name=device)
        if kind:
            ElementTree.SubElement(case, kind, message=message, type=kind)
        if text:
            ElementTree.SubElement(case, "system-out").text = text
    counts = {kind: sum(c[0] == kind for c in cases) for kind in ("failure", "error")}
    for attribute, count in (("tests", len(cases)), ("failures", counts["failure"]), ("errors", counts["error"])):
        suite.set(attribute, str(count))
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _case(device: Mapping[str, Any], document: Document) -> tuple[str, str, str, str]:
    """Kind (failure, error or none), name, message, and all that is known as text."""
    gates = device["gates"].values()
    asked = any(limit is not None for limit in document["limits"].values())
    failed = device["failed"] or "beyond" in gates
    unsure = any(g not in _KEPT for g in gates) if asked else device["verdict"] == "inconclusive"
    kind = "failure" if failed else "error" if unsure else ""
    return kind, device["name"], one_line(device["text"]), "\n".join([device["text"], *_about(device)])


FORMS: dict[str, Callable[[Document], str]] = {"table": table, "json": as_json, "junit": as_junit}
