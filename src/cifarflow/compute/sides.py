"""Sides of windows, filters and steps, as torch's functions take them."""

from collections.abc import Sequence


def pair(sides: int | Sequence[int]) -> tuple[int, ...]:
    """Of both directions: one number stands for two."""
    return (sides, sides) if isinstance(sides, int) else tuple(sides)
