"""What every source of power owes: rails that say what they include, numbers in watts or joules, or a reason; never an invented 0.

A new source: its layout in tests/fixtures/power.py, a row in SITES.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from agent import power
from agent.power import CHEAP, LOCAL, METERS, Meter, NoPower, Source, choose, find, look
from agent.probe import labels, power_sources
from agent.sensors import Absent, Reading, rails
from edgefarm.energy.signal import Kind
from tests.fakes.web import serving
from tests.fixtures import power as layouts
from tests.fixtures.trees import BARE, LAPTOP, PI4, VIRTUAL, plant


@dataclass(frozen=True)
class Layout:
    """Where a source finds something: a tree, or the answers of a server. `pmic`: what a planted vcgencmd prints."""

    source: str
    first: str
    value: float  # of the first rail: watts, or joules where it counts
    kind: Kind
    tree: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    pmic: str = ""


_PMIC_WATTS = 6.22421 * 0.861733 + sum((
    0.09368929 * 3.699776, 0.0878337 * 3.310033, 0.1805471 * 1.805126, 0.2254398 * 1.104761, 0.0666672 * 0.6014646, 0.1756674 * 1.110255,
    0.376709 * 0.8014644, 0.00006105 * 3.313183, 0.0003663 * 3.306773, 0.0030525 * 0.8002922, 0.0241758 * 5.08664,
))  # fmt: skip
SITES: dict[str, Layout] = {
    "orin-nano": Layout("hwmon", "VDD_IN", 5.040 * 0.912, Kind.MEAN, layouts.ORIN_NANO),
    "agx-orin": Layout(
        "hwmon", "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0", 19.6 * 0.2 + 19.592 * 0.048 + 4.992 * 0.808, Kind.MEAN, layouts.AGX_ORIN
    ),
    "ina226": Layout("hwmon", "board", 7.575, Kind.MEAN, layouts.INA226),
    "jetson-nano": Layout("iio", "POM_5V_IN", 1.75, Kind.MEAN, layouts.JETSON_NANO),
    "agx-xavier": Layout("iio", "GPU+CPU+SOC+CV+VDDRQ+SYS5V", 2.1, Kind.MEAN, layouts.AGX_XAVIER),
    "rapl": Layout("rapl", "package-0", 41232.113546, Kind.COUNTER, layouts.RAPL),
    "psys": Layout("rapl", "psys", 99232.113546, Kind.COUNTER, layouts.PSYS),
    "pixel": Layout("odpm", "compute", 135.516733, Kind.COUNTER, layouts.PIXEL_6),
    "phone": Layout("battery", "battery", 0.412 * 3.9125, Kind.MOMENT, layouts.PHONE),
    "pi5": Layout("raspberry-pi", "PMIC", _PMIC_WATTS, Kind.MOMENT, pmic=layouts.PMIC),
    "shelly": Layout("shelly", "wall-0", 8.9, Kind.MEAN, answers=layouts.SHELLY),
    "tasmota": Layout("tasmota", "wall-0", 11.0, Kind.MEAN, answers=layouts.TASMOTA),
    "tasmota-old": Layout("tasmota", "wall-0", 7.5, Kind.MEAN, answers=layouts.TASMOTA_OLD),
    "tasmota-two": Layout("tasmota", "wall-1", 19.0, Kind.MEAN, answers=layouts.TASMOTA_TWO, meter=Meter(channel=1)),
    "prometheus": Layout(
        "prometheus", 'pdu_watts{outlet="3"}', 12.25, Kind.MEAN, answers=layouts.PROMETHEUS, meter=Meter(query='pdu_watts{outlet="3"}')
    ),
    "prometheus-sum": Layout(
        "prometheus", "sum(pdu_watts)", 61.5, Kind.MEAN, answers=layouts.PROMETHEUS, meter=Meter(query="sum(pdu_watts)")
    ),
    "prometheus-scalar": Layout(
        "prometheus", "scalar(sum(pdu_watts))", 61.5, Kind.MEAN, answers=layouts.PROMETHEUS, meter=Meter(query="scalar(sum(pdu_watts))")
    ),
}


def plant_vcgencmd(root: Path, says: str) -> None:
    program = root / "usr/bin/vcgencmd"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!{sys.executable}\nimport sys\nassert sys.argv[1:] == ["pmic_read_adc"]\nsys.stdout.write({says!r})\n')
    program.chmod(0o755)


@contextmanager
def opened(name: str, folder: Path) -> Iterator[Source]:
    site = SITES[name]
    plant(site.tree, folder)
    if site.pmic:
        plant_vcgencmd(folder, site.pmic)
    if not site.answers:
        yield find(site.source, folder, site.meter)
        return
    with serving(site.answers.get) as url:
        yield find(site.source, folder, Meter(url=url + "/", channel=site.meter.channel, query=site.meter.query))


def test_every_row_has_its_layout() -> None:
    assert {site.source for site in SITES.values()} | {"nvml"} == {*LOCAL, *METERS}
    assert set(CHEAP) < set(LOCAL)


@pytest.mark.parametrize("name", SITES)
def test_contract(name: str, tmp_path: Path) -> None:
    with opened(name, tmp_path) as source:
        site, first = SITES[name], source.rails[0]
        assert (source.name, first.name, first.kind) == (site.source, site.first, site.kind)
        assert source.read(first.name).value == pytest.approx(site.value, rel=1e-9)
        assert source.external == (site.source in METERS)
        assert 0 < source.poll_ns <= 10**9
        for rail in source.rails:
            assert rail.includes
            assert source.read(rail.name).value >= 0
        names = [r.name for r in source.rails]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("name", [*LOCAL, *METERS])
def test_nothing_there_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(NoPower, match=f"^{name}: "):
        find(name, tmp_path)


@pytest.mark.parametrize("name", [n for n, site in SITES.items() if site.tree])
def test_garbage_is_a_reason(name: str, tmp_path: Path) -> None:
    plant(dict.fromkeys(SITES[name].tree, "garbage ::\n"), tmp_path)
    with pytest.raises(NoPower, match=f"^{SITES[name].source}: "):
        find(SITES[name].source, tmp_path)


def test_documented_rates_and_wraps_are_read(tmp_path: Path) -> None:
    orin = find("hwmon", plant(layouts.ORIN_NANO, tmp_path / "orin"))
    assert [(r.name, r.period_ns, bool(r.accuracy)) for r in orin.rails] == [
        ("VDD_IN", 142_000_000, True), ("VDD_CPU_GPU_CV", 142_000_000, True), ("VDD_SOC", 142_000_000, True),
    ]  # fmt: skip
    psys = find("rapl", plant(layouts.PSYS, tmp_path / "psys"))
    assert [(r.name, r.wraps_at) for r in psys.rails] == [
        ("psys", 262143.32885), ("package-0", 262143.32885), ("core-0", 262143.32885), ("dram-0", 65712.999613),
    ]  # fmt: skip
    assert "not the memory" in psys.rails[1].includes


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), r"energy_uj: Permission denied: only root may read it since CVE-2020-8694; give"),
        (OSError(61, "No data available"), r"energy_uj: No data available$"),
    ],
)
def test_counters_that_cannot_be_read_say_why(error: OSError, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(layouts.RAPL, tmp_path)

    def refuse(path: Path) -> bytes:  # root, as whom tests may run, can read everything
        raise error

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(NoPower, match=f"^rapl: intel-rapl:0.*/{reason}"):
        find("rapl", root)


def test_a_pi_before_the_5_says_so(tmp_path: Path) -> None:
    plant_vcgencmd(tmp_path, layouts.OLDER_PI)
    with pytest.raises(NoPower, match=r"no currents \(a Raspberry Pi before the 5\?\): error=1"):
        find("raspberry-pi", tmp_path)


def test_what_the_power_controller_does_not_see_is_said(tmp_path: Path) -> None:
    with opened("pi5", tmp_path) as source:
        assert "not USB ports" in source.rails[0].includes
        assert {"EXT5V", "BATT"}.isdisjoint(r.name for r in source.rails)
        assert source.read("VDD_CORE").value == pytest.approx(6.22421 * 0.861733)


def test_a_charged_battery_says_what_to_do(tmp_path: Path) -> None:
    plant({**layouts.PHONE, "sys/class/power_supply/battery/status": "Charging\n"}, tmp_path)
    with pytest.raises(NoPower, match=r"battery is not discharging \(Charging\): unplug the charger"):
        find("battery", tmp_path)


def test_a_laptop_that_tells_watts(tmp_path: Path) -> None:
    root = plant({**LAPTOP, "sys/class/power_supply/BAT0/power_now": "9120000\n"}, tmp_path)
    assert find("battery", root).read("BAT0").value == 9.12


def test_updates_have_the_sources_own_stamps(tmp_path: Path) -> None:
    with opened("pixel", tmp_path / "pixel") as source:
        assert source.read("compute").stamp == 349894
        assert source.read("VSYS_PWR_MODEM").value == 29.11094
    with opened("prometheus", tmp_path) as source:
        assert source.read(source.rails[0].name).stamp == 1435781435.781
    with opened("prometheus-sum", tmp_path) as source:  # the time of evaluation says nothing of an update
        assert source.read(source.rails[0].name).stamp is None


@pytest.mark.parametrize(
    ("source", "answers", "status", "query", "reason"),
    [
        ("shelly", {"/rpc/Switch.GetStatus?id=0": '{"id":0,"output":true}'}, 200, "", "no `apower`: this model has no power meter"),
        ("shelly", layouts.SHELLY, 401, "", "HTTP 401; it wants a password"),
        ("shelly", {}, 200, "", "HTTP 404"),
        ("shelly", {"/rpc/Switch.GetStatus?id=0": "<html>"}, 200, "", "no JSON: b'<html>'"),
        ("shelly", {"/rpc/Switch.GetStatus?id=0": '{"apower":null}'}, 200, "", "apower: no number: None"),
        ("tasmota", dict.fromkeys(layouts.TASMOTA_OLD, '{"StatusSNS":{}}'), 200, "", "without StatusSNS.ENERGY.Power"),
        ("prometheus", layouts.PROMETHEUS, 200, "pdu_watts", "gives 2 series, one is needed"),
        ("prometheus", layouts.PROMETHEUS, 200, "sum(", "unclosed left parenthesis"),
        ("prometheus", layouts.PROMETHEUS, 200, "sum(pdu_watts)/0", "NaN"),
    ],
)
def test_meters_that_answer_otherwise(source: str, answers: Mapping[str, str], status: int, query: str, reason: str) -> None:
    with serving(answers.get, status) as url, pytest.raises(NoPower) as raised:
        find(source, Path("/"), Meter(url=url, query=query))
    assert str(raised.value).startswith(f"{source}: ")
    assert reason in str(raised.value)


def test_a_channel_that_is_not_there(tmp_path: Path) -> None:
    with serving(layouts.TASMOTA_TWO.get) as url, pytest.raises(NoPower, match="no channel 5, there are 2"):
        find("tasmota", tmp_path, Meter(url=url, channel=5))


@pytest.mark.parametrize("url", ["ftp://plug", "plug", "http://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(NoPower, match="must be like http://"):
        find("shelly", Path("/"), Meter(url=url))


def test_a_meter_that_is_off_is_a_reason(tmp_path: Path) -> None:
    with serving({}.get) as url:
        pass
    with pytest.raises(NoPower, match="Connection refused"):
        find("shelly", tmp_path, Meter(url=url))


class _FakeCards(ModuleType):
    """As much of pynvml as there is for two cards, of which the second has no energy counter (before Volta)."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if handle == 1:
            raise self.NVMLError("Not Supported")
        return 123456789

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 71234


def test_graphics_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant({"dev/nvidiactl": ""}, tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NoPower, match=r"nvml: needs: pip install 'edgefarm\[nvml\]'"):
        find("nvml", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", _FakeCards("pynvml"))
    source = find("nvml", tmp_path)
    assert [(r.name, r.kind) for r in source.rails] == [("gpu0", Kind.COUNTER), ("gpu1", Kind.MEAN)]
    assert [source.read(r.name).value for r in source.rails] == [123456.789, 71.234]
    monkeypatch.setattr(_FakeCards, "nvmlDeviceGetPowerUsage", _FakeCards.nvmlDeviceGetTotalEnergyConsumption)
    with pytest.raises(OSError, match="gpu1: Not Supported"):
        source.read("gpu1")


def test_the_best_is_chosen_and_a_wish_is_followed(tmp_path: Path) -> None:
    root = plant({**layouts.ORIN_NANO, **layouts.PSYS}, tmp_path)
    assert [(s.name, r.name) for s, r in [choose("", root)]] == [("hwmon", "VDD_IN")]
    assert choose("hwmon/VDD_SOC", root)[1].name == "VDD_SOC"
    assert choose("rapl", root)[1].name == "psys"
    said = Meter("rapl", "dram-0")
    assert choose("", root, said)[1].name == "dram-0"
    assert choose("rapl", root, said)[1].name == "dram-0"
    assert choose("hwmon", root, said)[1].name == "VDD_IN"
    assert list(look(root, said)[0]) == ["rapl", "hwmon"]
    with pytest.raises(NoPower, match="hwmon: no rail 'VDD'; it has VDD_IN, VDD_CPU_GPU_CV, VDD_SOC"):
        choose("hwmon/VDD", root)


def test_every_reason_is_given_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(NoPower) as raised:
        choose("", tmp_path)
    assert all(f"{name}: " in str(raised.value) for name in LOCAL)


def test_a_device_labels_itself_with_its_sources(tmp_path: Path) -> None:
    root = plant({**layouts.ORIN_NANO, **layouts.PHONE}, tmp_path / "phone")
    assert labels(root)["power"] == "hwmon,battery"
    # a meter in the network may be asleep while the device starts
    assert labels(root, meter=Meter("shelly", url="http://192.0.2.1"))["power"] == "shelly,hwmon,battery"
    assert "power" not in labels(plant(VIRTUAL, tmp_path / "virtual"))
    told = power_sources(None, root)
    assert told["hwmon"]["rails"]["VDD_IN"] == "everything that the module takes in"
    assert told["rapl"] == {"rails": {}, "reason": "rapl: no energy counter in /sys/class/powercap"}


@pytest.mark.parametrize("name", [n for n, site in SITES.items() if site.source in CHEAP])
def test_what_is_cheap_is_a_sensor_too(name: str, tmp_path: Path) -> None:
    found = [o for o in rails.read(plant(SITES[name].tree, tmp_path)) if isinstance(o, Reading)]
    quantity = "energy_joules_total" if SITES[name].kind is Kind.COUNTER else "power_watts"
    assert {o.quantity for o in found} == {quantity}
    source = find(SITES[name].source, tmp_path)
    assert [o.source for o in found] == [f"{source.name}/{r.name}" for r in source.rails if not r.sum_of]
    whole = source.rails[0]
    parts = {f"{source.name}/{name}" for name in whole.sum_of or [whole.name]}
    assert sum(o.value for o in found if o.source in parts) == pytest.approx(SITES[name].value)


def test_a_battery_on_a_charger_gives_no_watts(tmp_path: Path) -> None:
    root = plant({**layouts.PHONE, "sys/class/power_supply/battery/status": "Charging\n"}, tmp_path)
    assert [type(o) for o in rails.read(root)] == [Absent]
    (root / "sys/class/power_supply/battery/status").write_text("Discharging\n")
    assert [type(o) for o in rails.read(root)] == [Reading]


@pytest.mark.parametrize("tree", [PI4, LAPTOP, VIRTUAL, BARE], ids=["pi4", "laptop", "virtual", "bare"])
def test_other_boards_have_none_of_their_own(tree: Mapping[str, str], tmp_path: Path) -> None:
    found, reasons = look(plant(tree, tmp_path))
    assert set(found) <= {"battery"}
    assert set(found) | set(reasons) == set(LOCAL)


def test_looking_imports_neither_a_network_client_nor_a_library() -> None:
    """An idle agent pays for none of it."""
    heavy = {"urllib.request", "http.client", "pynvml", "numpy"}
    code = f"import sys; from agent import power; power.look(); print(sorted({heavy} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(NoPower, match=f"known are {', '.join([*power.LOCAL, *power.METERS])}"):
        find("wattmeter")
