"""The contract that the agent, the controller and the optimizer share."""

__version__ = "0.1.0"
