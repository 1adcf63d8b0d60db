"""How to measure: latency, memory, energy, accuracy, golden outputs. The supervisor's side: each measurement asks fresh runner processes.

Every function takes the host's measure lock for as long as it measures (its caller must not hold it), stops within some 50 ms once
`Site.cancelled()` is true (raising Cancelled), and gives failures as values.
"""

from agent.bench.energy import measure_energy
from agent.bench.golden import check_golden
from agent.bench.latency import measure_latency
from agent.bench.memory import measure_memory
from agent.bench.passes import measure_accuracy, measure_pass
from agent.bench.profile import measure_profile
from agent.bench.site import Measured, Site, Surroundings
from agent.runner.process import Cancelled

__all__ = [
    "Cancelled",
    "Measured",
    "Site",
    "Surroundings",
    "check_golden",
    "measure_accuracy",
    "measure_energy",
    "measure_latency",
    "measure_memory",
    "measure_pass",
    "measure_profile",
]
