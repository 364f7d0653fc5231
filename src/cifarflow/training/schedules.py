"""Learning-rate schedules: pure functions of progress, so that a resumed run needs no scheduler state."""

import math
from collections.abc import Callable

from cifarflow.registry import Registry

Schedule = Callable[[float], float]
SCHEDULES: Registry[Schedule] = Registry("schedule")
"""Each maps the progress after the warm-up, in [0, 1], to how much of the way from final to peak rate is left."""


@SCHEDULES.register("constant")
def constant(progress: float) -> float:
    return 1.0


@SCHEDULES.register("linear")
def linear(progress: float) -> float:
    return 1.0 - progress


@SCHEDULES.register("cosine")
def cosine(progress: float) -> float:
    """Half a cosine wave from 1 to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def learning_rate_factor(
    progress: float, *, name: str, warmup_fraction: float, final_fraction: float
) -> float:
    """What the peak learning rate is multiplied with at `progress` in [0, 1] of training; the result is in [0, 1]."""
    if progress < warmup_fraction:
        return progress / warmup_fraction
    after_warmup = (progress - warmup_fraction) / (1 - warmup_fraction)
    return final_fraction + (1 - final_fraction) * SCHEDULES.get(name)(after_warmup)
