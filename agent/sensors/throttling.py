"""Is the device being slowed down, and why: cooling devices in use, thermal event counters, a Raspberry Pi's firmware.

Sources: https://docs.kernel.org/driver-api/thermal/sysfs-api.html, arch/x86/kernel/cpu/mce/therm_throt.c, and the bits of
`vcgencmd get_throttled` (https://www.raspberrypi.com/documentation/computers/os.html#get_throttled).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.sensors import Absent, Observation, Reading
from agent.sensors.files import number, number_of, text

_SLOWS_DOWN = ("processor", "cpufreq", "devfreq", "powerclamp", "tcc_offset", "gpu")
_FIRMWARE = "sys/devices/platform/soc*/*firmware/get_throttled"  # soc/soc:firmware on a Pi 4
_FIRMWARE_NOW = {0: "under-voltage", 1: "frequency capped", 2: "throttled by firmware", 3: "soft temperature limit"}


def read(root: Path) -> list[Observation]:
    """`throttled` (0 or 1) by reason, and `throttle_events_total` by core and cause."""
    flags = [*_cooling(root), *_firmware(root)]
    counters = list(_counters(root))
    if not flags and not counters:
        return [Absent("throttled", "no cooling device of a processor, no thermal event counter and no firmware flag in /sys")]
    return [*flags, *counters]


def _cooling(root: Path) -> Iterator[Observation]:
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*"), key=lambda p: number_of(p.name)):
        kind, state = text(device / "type") or "", number(device / "cur_state")
        # A fan or a dimmed screen cools without slowing; powerclamp says -1 while it is off.
        if state is not None and any(word in kind.lower() for word in _SLOWS_DOWN):
            yield Reading("throttled", f"cooling: {kind}#{number_of(device.name)}", float(state > 0))


def _counters(root: Path) -> Iterator[Observation]:
    for folder in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle"), key=lambda p: number_of(p.parent.name)):
        for cause in ("core", "package"):
            count = number(folder / f"{cause}_throttle_count")
            if count is not None:
                yield Reading("throttle_events_total", f"{folder.parent.name}/{cause}", count)


def _firmware(root: Path) -> Iterator[Observation]:
    content = next((t for path in root.glob(_FIRMWARE) if (t := text(path))), None)
    if content is not None:
        bits = int(content, 16)
        for bit, reason in _FIRMWARE_NOW.items():
            yield Reading("throttled", f"firmware: {reason}", float(bits >> bit & 1))
