"""How long the exported model takes on this machine: for metrics/export.json alone, nothing depends on it."""

import statistics
import time
from collections.abc import Callable

import numpy as np

from cifarflow.compute.processor import pictures_at_once
from cifarflow.inference.predictor import Predictor

SMALL, LARGE = 1, 64
MAX_RUNS = 9
BUDGET_SECONDS = 2.0  # a large network is not run again once this is spent


def median_milliseconds(
    predictor: Predictor, image_size: int, *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The median time of one call at batch 1 and 64 (less where pictures are large), as `latency_ms_batch_1` etc."""
    return {
        f"latency_ms_batch_{size}": round(
            1000 * _median_seconds(predictor, _grey(size, image_size), clock), 3
        )
        for size in sorted({SMALL, min(LARGE, pictures_at_once(image_size))})
    }


def _grey(count: int, side: int) -> np.ndarray:
    return np.full((count, side, side, 3), 128, np.uint8)


def _median_seconds(predictor: Predictor, images: np.ndarray, clock: Callable[[], float]) -> float:
    _seconds(predictor, images, clock)  # the first call allocates
    times = [_seconds(predictor, images, clock)]
    while len(times) < MAX_RUNS and sum(times) < BUDGET_SECONDS:
        times.append(_seconds(predictor, images, clock))
    return statistics.median(times)


def _seconds(predictor: Predictor, images: np.ndarray, clock: Callable[[], float]) -> float:
    start = clock()
    predictor.predict(images)
    return clock() - start
