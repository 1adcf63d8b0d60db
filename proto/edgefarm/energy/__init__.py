"""Energy from the readings of a power meter. Pure, standard library only.

`signal`: what a rail's readings say of power over time · `estimate`: energy per inference of a load window between two idle windows ·
`align`: the offset between a meter's clock and ours.
"""

from edgefarm.energy.align import Alignment, align
from edgefarm.energy.estimate import LEAST_UPDATES, Estimate, Progress, Unusable, Window, estimate
from edgefarm.energy.signal import Kind, Reading, Signal

__all__ = ["LEAST_UPDATES", "Alignment", "Estimate", "Kind", "Progress", "Reading", "Signal", "Unusable", "Window", "align", "estimate"]
