"""The fleet file: what a person writes, checked before anything runs."""

from controller.config.fleet import Fleet, load_fleet

__all__ = ["Fleet", "load_fleet"]
