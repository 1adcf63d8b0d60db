"""How to measure: latency, memory, accuracy, golden outputs. The supervisor's side: each measurement asks fresh runner processes.

Every function takes the host's measure lock for as long as it measures (its caller must not hold it), stops within some 50 ms once
`Site.cancelled()` is true (raising Cancelled), and gives failures as values.
"""

from agent.bench.golden import check_golden
from agent.bench.latency import measure_latency
from agent.bench.passes import measure_accuracy, measure_memory, measure_pass
from agent.bench.site import Measured, Site
from agent.runner.process import Cancelled

__all__ = ["Cancelled", "Measured", "Site", "check_golden", "measure_accuracy", "measure_latency", "measure_memory", "measure_pass"]
