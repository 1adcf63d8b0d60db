"""What a dry run says of measuring before anything runs: roughly how long, under which load, when and where. Pure."""

from __future__ import annotations

from controller.config.enrolled import told
from controller.config.fleet import Target
from controller.config.schema import FleetFile, ScenarioSection
from controller.planner import CONTENDERS, LAUNCHES

# A launch of four contenders with a model of some milliseconds when screened, and what one of them takes of it when compared; accuracy
# and memory take about a launch of one contender each.
_SCREENING_S, _CONTENDER_S, _SINGLES = 1.3, 0.4, 2 * CONTENDERS
_USUAL_LAUNCHES = LAUNCHES // 2  # most comparisons are decided by then
_BURSTS, _LEAST_BURSTS, _BURST_INFERENCES = 8, 3, 3
_PACED_S, _SERVER_S = 5.0, 2.0  # of one contender in a launch at a given rate, at most; under random arrivals, where no duration is given
_ENERGY_S = 20.0  # idle windows around one of load


def seconds(file: FleetFile, target: Target, screening_rounds: int) -> float:
    """Roughly the device time of one device, within its budget: inferences are taken to last some milliseconds."""
    scenario = file.measure.scenario
    sizes = len(scenario.batch_sizes or (1,))
    needs_energy = target.objective == "energy" or target.constraints.energy_mj is not None
    spent = screening_rounds * _SCREENING_S * sizes
    spent += _USUAL_LAUNCHES * CONTENDERS * _launch_s(scenario)
    spent += _SINGLES * _SCREENING_S + (CONTENDERS * _ENERGY_S if needs_energy else 0.0)
    return min(file.measure.budget.minutes_per_device * 60, spent)


def measuring(file: FleetFile) -> dict[str, str]:
    """How the file's `measure` differs from the default, for people: `scenario`, `window`, `where`, `on_fallback`, `accept`."""
    measure = file.measure
    found = {"scenario": _scenario(measure.scenario)}
    if measure.window is not None:
        found["window"] = f"launches begin only from {measure.window.replace('-', ' to ')}, by each device's own clock"
    if measure.where is not None:
        found["where"] = f"only devices with {told(measure.where)} measure for their class; the others confirm"
    if measure.fails_on_fallback:
        found["on_fallback"] = "a candidate of which nodes ran elsewhere than asked for fails"
    if measure.accept != ["stable"]:
        found["accept"] = f"a winner may be {', '.join(measure.accept)}"
    return found


def _launch_s(scenario: ScenarioSection) -> float:
    """Seconds of one contender in a launch of a comparison."""
    if scenario.kind in ("sustained", "server"):
        return _CONTENDER_S + (scenario.duration_s or _SERVER_S)
    if scenario.rate_per_s is not None:
        burst_s = max(0.02, _BURST_INFERENCES / scenario.rate_per_s)
        return _CONTENDER_S + burst_s * min(_BURSTS, max(_LEAST_BURSTS, int(_PACED_S / burst_s)))
    return _CONTENDER_S * len(scenario.batch_sizes or (1,))


def _scenario(scenario: ScenarioSection) -> str:
    sizes = ", ".join(map(str, scenario.batch_sizes or (1,)))
    rate, lasting = f"{scenario.rate_per_s or 0:g} per second", f"{scenario.duration_s or _SERVER_S:g} s per launch"
    return {
        "paced": "one inference after the other" if scenario.rate_per_s is None else f"{rate}, idle in between",
        "offline": f"all samples at once, in batches of {sizes}",
        "sustained": f"without a pause, {lasting}",
        "server": f"requests at random moments, {rate} on average, {lasting}",
    }[scenario.kind]
