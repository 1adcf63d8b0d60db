"""Types of arguments on the command line."""

from __future__ import annotations

import argparse


def pair(text: str) -> tuple[str, str]:
    """`KEY=VALUE`."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, value


def option(text: str) -> tuple[str, bool | int | float | str]:
    """`KEY=VALUE` whose value is a truth value, a number, or else text."""
    key, value = pair(text)
    if value in ("true", "false"):
        return key, value == "true"
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value


def sizes(text: str) -> list[int]:
    """`1,8`."""
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers, as 1,8, got {text!r}") from None


def names(text: str) -> list[str]:
    """`NAME,NAME`."""
    return [name for name in text.split(",") if name]
