"""Is the device being slowed down, and why: cooling devices in use, thermal and over-current event counters, a Raspberry Pi's firmware.

Sources: https://docs.kernel.org/driver-api/thermal/sysfs-api.html, arch/x86/kernel/cpu/mce/therm_throt.c, the bits of
`vcgencmd get_throttled` (https://www.raspberrypi.com/documentation/computers/os.html#get_throttled), drivers/hwmon/raspberrypi-hwmon.c
(`rpi_volt`), and "Jetson Linux Developer Guide", platform power and performance, over-current event status (`soctherm_oc`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.sensors import Absent, Observation, Reading
from agent.sensors.files import firmware_flags, matching, number, number_of, text

# On a Jetson `cpu-throttle-alert` and its like report what the hardware does by itself.
_SLOWS_DOWN = ("processor", "cpufreq", "devfreq", "powerclamp", "tcc_offset", "gpu", "throttle")
_FIRMWARE = "sys/devices/platform", "soc*/*firmware/get_throttled"  # soc/soc:firmware on a Pi 4


def read(root: Path) -> list[Observation]:
    """`throttled` and `throttled_before` (0 or 1) by reason, `cooling_ratio` (0 to 1) by device, `throttle_events_total` by cause.

    `throttled_before`: it has happened since the flags were last cleared, by the driver's poll of every two seconds or by a boot.
    """
    flags = [*_cooling(root), *_firmware(root), *_voltage(root)]
    counters = [*_counters(root), *_over_current(root)]
    if not flags and not counters:
        return [Absent("throttled", "no cooling device of a processor, no thermal event counter and no firmware flag in /sys")]
    return [*flags, *counters]


def _cooling(root: Path) -> Iterator[Observation]:
    for device in matching(root, "sys/class/thermal", "cooling_device*"):
        kind, state = text(device / "type") or "", number(device / "cur_state")
        # A fan or a dimmed screen cools without slowing; powerclamp says -1 while it is off.
        if state is None or not any(word in kind.lower() for word in _SLOWS_DOWN):
            continue
        name, most = f"{kind}#{number_of(device.name)}", number(device / "max_state")
        yield Reading("throttled", f"cooling: {name}", float(state > 0))
        if most:
            yield Reading("cooling_ratio", name, max(0.0, state) / most)


def _counters(root: Path) -> Iterator[Observation]:
    folders = matching(root, "sys/devices/system/cpu", "cpu[0-9]*/thermal_throttle")
    for folder in sorted(folders, key=lambda p: number_of(p.parent.name)):
        for cause in ("core", "package"):
            count = number(folder / f"{cause}_throttle_count")
            if count is not None:
                yield Reading("throttle_events_total", f"{folder.parent.name}/{cause}", count)


def _firmware(root: Path) -> Iterator[Observation]:
    content = next((t for path in matching(root, *_FIRMWARE) if (t := text(path))), None)
    if content is not None:
        now, before = firmware_flags(int(content, 16))
        yield from (Reading("throttled", f"firmware: {reason}", float(flag)) for reason, flag in now.items())
        yield from (Reading("throttled_before", f"firmware: {reason}", float(flag)) for reason, flag in before.items())


def _voltage(root: Path) -> Iterator[Observation]:
    """A Raspberry Pi's under-voltage of the last two seconds, as often as its driver asks the firmware."""
    for chip in matching(root, "sys/class/hwmon", "hwmon*"):
        if text(chip / "name") == "rpi_volt" and (alarm := number(chip / "in0_lcrit_alarm")) is not None:
            yield Reading("throttled", "rpi_volt: under-voltage", float(alarm > 0))


def _over_current(root: Path) -> Iterator[Observation]:
    """A Jetson's throttling by supply current, by the number of its event (`oc1` …)."""
    for path in sorted(matching(root, "sys/class/hwmon", "hwmon*/oc*_event_cnt")):
        if (count := number(path)) is not None:
            yield Reading("throttle_events_total", f"over-current: {path.name.removesuffix('_event_cnt')}", count)
