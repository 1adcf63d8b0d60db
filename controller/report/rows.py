"""What a person reads of a report, form by form alike: columns, lines, order. Reports of earlier versions lack some fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Report = Mapping[str, Any]
_SHOWN_CHARACTERS = 300
_SHOWN_OPERATORS = 4
SCREENED = "screened"  # in the place of a verdict: one launch, which only ranks
NUMBERS = ("n", "MiB", "ms", "mJ", "/s")  # ends of the columns that hold numbers


def order(device: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Candidates of a device: the winner first, then by what was compared and by speed."""

    def rank(candidate: Mapping[str, Any]) -> tuple[bool, bool, float]:
        latency, screening = candidate["latency_ns"], candidate["screening"]
        value = latency["p50"]["value"] if latency else screening["p50_ns"] if screening else float("inf")
        return candidate is not device["winner"] and candidate != device["winner"], latency is None, value

    return sorted(device["candidates"], key=rank)


def row(device: Mapping[str, Any], candidate: Mapping[str, Any]) -> dict[str, str]:
    """Column -> text. A number stands beside its verdict, its interval and its n, or it is `~` of one screening launch."""
    latency, accuracy, memory = candidate["latency_ns"], candidate["accuracy"], candidate["memory"]
    p50, ratio = _times(candidate)
    shown = {
        "variant": candidate["variant"],
        "runtime": _runtime(candidate),
        "threads": str(candidate["options"].get("threads", "-")),
        "p50 ms": p50,
        "n": str(latency["n"]) if latency else str(candidate["screening"]["n"]) if candidate["screening"] else "-",
        "verdict": candidate["verdict"] or (SCREENED if candidate["screening"] else "-"),
        "speed-up (95 %)": ratio,
    }
    if any(c["scenario"]["kind"] != "paced" and c.get("throughput") for c in device["candidates"]):
        shown["samples /s"] = _throughput(candidate)
    if any(c["energy"] for c in device["candidates"]):
        shown["energy mJ"] = _energy(candidate)
    return {
        **shown,
        "accuracy": _accuracy(accuracy),
        "size MiB": f"{candidate['artifact']['bytes'] / 2**20:.2f}",
        "memory MiB": f"{memory['peak_rss_bytes'] / 2**20:.1f}" if memory else "-",
        "why not": one_line(candidate["rejected"] or ""),
    }


def _accuracy(accuracy: Mapping[str, Any] | None) -> str:
    """In brackets where it is that of the samples that chose."""
    if not accuracy or accuracy["value"] is None:
        return "-"
    return f"{accuracy['value']:.4f}" if accuracy["split"] == "evaluation" else f"({accuracy['value']:.4f})"


def columns(device: Mapping[str, Any]) -> list[str]:
    """Those that the device's candidates have."""
    return list(row(device, device["candidates"][0])) if device["candidates"] else []


def _times(candidate: Mapping[str, Any]) -> tuple[str, str]:
    latency, screening, speedup = candidate["latency_ns"], candidate["screening"], candidate["speedup_vs_baseline"]
    if latency:
        ends = speedup["ci95"] if speedup else None
        ratio = f"{speedup['ratio']:.2f}" if speedup else "-"
        p50 = latency["p50"]
        return f"{p50['value'] / 1e6:.3f}{_spread(p50['value'], p50['ci95'])}", ratio + (
            f" ({ends[0]:.2f}-{ends[1]:.2f})" if ends and ends[0] < ends[1] else ""
        )
    return (f"~{screening['p50_ns'] / 1e6:.3f}", f"~{screening['speedup']:.2f}") if screening else ("-", "-")


def _spread(value: float, ci95: list[float] | None) -> str:
    """` ±0.4%`: half of the interval; nothing where there is none."""
    return f" ±{100 * (ci95[1] - ci95[0]) / 2 / value:.1f}%" if ci95 and value else ""


def _throughput(candidate: Mapping[str, Any]) -> str:
    known = candidate.get("throughput")
    if not known:
        return "-"
    batch = f" (batch {known['best_batch']})" if known.get("best_batch") else ""
    return f"{known['per_s']:.4g}{_spread(known['per_s'], known['ci95'])}{batch}"


def _energy(candidate: Mapping[str, Any]) -> str:
    energy = candidate["energy"]
    return f"{energy['per_inference_uj'] / 1e3:.3g}{_spread(energy['per_inference_uj'], energy.get('ci95'))}" if energy else "-"


def _runtime(candidate: Mapping[str, Any]) -> str:
    """With its options but the number of threads, and what it chose by itself: `tflite xnnpack`, `openvino CPU bf16`."""
    options = [str(value).removesuffix("ExecutionProvider") for name, value in candidate["options"].items() if name != "threads"]
    return " ".join([candidate["runtime"], *options, *candidate.get("chosen", {}).values()])


def verdict_line(device: Mapping[str, Any]) -> str:
    """The choice on a device, in words."""
    winner = device["winner"]
    if winner is None:
        return str(device["reason"]) if device.get("measured_only") else f"no winner: {device['reason']}"
    if winner == device["baseline"]:
        return f"the baseline stays: {device['reason']}"
    speedup = winner["speedup_vs_baseline"]
    if not speedup:
        return str(winner["variant"])
    return f"{winner['variant']}, {speedup['ratio']:.2f}x the baseline's speed ({winner['verdict']})"


def notes(device: Mapping[str, Any]) -> Iterator[str]:
    """Lines below a device's table: how far its numbers can be trusted, what the winner's time goes to, what failed."""
    if text := conditions_line(device):
        yield text
    if device["baseline"] and device["baseline"].get("note"):
        yield f"baseline: {device['baseline']['note']}"
    for candidate in device["candidates"]:
        if fallback := candidate.get("fallback"):
            share = f", {fallback['time_share']:.0%} of the time" if fallback["time_share"] is not None else ""
            yield f"fallback: {fallback['nodes']} nodes of {candidate['variant']} ran elsewhere than on {fallback['asked']}{share}"
    if out := max((len(c.get("launches_left_out", ())) for c in device["candidates"]), default=0):
        yield f"left out: at most {out} launches of a candidate, taken under bad conditions (which and why: --format json)"
    for candidate in {id(c): c for c in (device["winner"], device["baseline"]) if c}.values():
        yield from _about(candidate)
    for failure in device["failures"]:
        yield f"failed: {failure_line(failure)}"


def _about(candidate: Mapping[str, Any]) -> Iterator[str]:
    if profile := candidate.get("profile"):
        top = (f"{o['name']} ({o['kind']}) {o['share']:.0%}" for o in profile["operators"][:_SHOWN_OPERATORS])
        yield f"{candidate['variant']}: time by operator ({profile['source']}): {', '.join(top)}"
    if (energy := candidate["energy"]) and energy.get("source"):
        idle = "idle subtracted" if energy["idle_subtracted"] else "idle NOT subtracted"
        included = f", includes {energy['includes']}" if energy.get("includes") else ""
        yield f"{candidate['variant']}: energy from {energy['source']} {energy['rail']} at {energy['rate_hz']:.3g} Hz, {idle}{included}"


def conditions_line(device: Mapping[str, Any]) -> str:
    """What surrounded the measurements of the winner, else of the baseline; empty where nothing was measured."""
    shown = device["winner"] or device["baseline"]
    known = shown["conditions"] if shown else {}
    if not known:
        return ""
    words = [_launches(known), *_load(known), *_sensed(known)]
    settings = known.get("settings", {})
    words += [f"{name} {settings[name]}" for name in ("governor", "affinity", "power_mode", "start") if name in settings]
    words.append(f"throttled: {', '.join(known['throttled'])}" if known["throttled"] else "no throttling seen")
    if floor := device.get("noise_floor"):
        ends = f" ({floor['ci95'][0]:.4f}-{floor['ci95'][1]:.4f})" if floor["ci95"] else ""
        words.append(f"two copies of the baseline: {floor['ratio']:.4f}x{ends}")
    return f"conditions: {', '.join(filter(None, words))}"


def _launches(known: Mapping[str, Any]) -> str:
    return f"{known['launches']} launches" if "launches" in known else ""


def _load(known: Mapping[str, Any]) -> Iterator[str]:
    if known["others_cpu"] is not None:
        peak = known.get("others_cpu_peak")
        yield f"other processes {known['others_cpu']:.2f} cores{f' (at most {peak:.2f})' if peak is not None else ''}"
    if known.get("waited"):
        yield f"waited for a CPU {known['waited']:.1%} of the time"
    if known["steal"]:
        yield f"the hypervisor took {known['steal']:.1%}"


def _sensed(known: Mapping[str, Any]) -> Iterator[str]:
    for quantity, unit, scale in (("temperature_celsius", "°C", 1.0), ("frequency_hertz", "GHz", 1e9)):
        ranges = [t for name, t in known["traces"].items() if name.partition("/")[0] == quantity]
        if ranges:
            yield f"{min(t['low'] for t in ranges) / scale:.3g}-{max(t['high'] for t in ranges) / scale:.3g} {unit}"
        elif why := known["unavailable"].get(quantity):
            yield f"{quantity.partition('_')[0]} unknown ({why})"


def failure_line(failure: Mapping[str, Any]) -> str:
    """What failed, where, and why."""
    return f"{failure['variant']} ({failure['stage']}, {failure['kind']}): {one_line(failure['detail'])}"


def one_line(text: str) -> str:
    """For people; libraries' messages may be pages long. The JSON form has all of it."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"
