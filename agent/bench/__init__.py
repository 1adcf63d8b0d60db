"""How to measure: latency, memory, energy, accuracy, golden outputs. The supervisor's side: each measurement asks fresh runner processes.

Every `measure_…` takes the host's measure lock for as long as it measures (its caller must not hold it), stops within some 50 ms once
`Site.cancelled()` is true (raising Cancelled), and gives failures as values. An agent imports them with its first order.
"""
