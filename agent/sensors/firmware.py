"""A Raspberry Pi's throttle flags by `vcgencmd get_throttled`, for kernels that don't show them in /sys.

https://www.raspberrypi.com/documentation/computers/os.html#get_throttled. It starts a process, which takes some 10 ms; a
measurement asks before and after only, and the upper bits tell what happened meanwhile.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from agent.sensors import Absent, Observation, Reading
from agent.sensors.files import firmware_flags

_COMMAND = "usr/bin/vcgencmd"
_IN_SYSFS = "sys/devices/platform/soc*/*firmware/get_throttled"
_TIMEOUT_S = 2.0


def read(root: Path) -> list[Observation]:
    """`throttled` (0 or 1) by reason, and `throttled_before`: 1 for what has happened since the flags were last cleared."""
    command = root / _COMMAND
    if next(iter(root.glob(_IN_SYSFS)), None) is not None:
        return [Absent("throttled", "the kernel shows the firmware's flags in /sys, where the sensor `throttling` reads them")]
    if not os.access(command, os.X_OK):
        return [Absent("throttled", f"no /{_COMMAND}: not a Raspberry Pi, or its tools are not installed")]
    try:
        done = subprocess.run([command, "get_throttled"], capture_output=True, text=True, timeout=_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [Absent("throttled", f"vcgencmd: {error}")]
    answer = re.fullmatch(r"throttled=0x([0-9a-fA-F]+)", done.stdout.strip())
    if answer is None:
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        return [Absent("throttled", f"vcgencmd: {said}; may the agent's user open /dev/vcio?")]
    now, before = firmware_flags(int(answer[1], 16))
    flags = [Reading("throttled", f"firmware: {reason}", float(flag)) for reason, flag in now.items()]
    return [*flags, *(Reading("throttled_before", f"firmware: {reason}", float(flag)) for reason, flag in before.items())]
