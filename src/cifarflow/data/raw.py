"""What every source gives: pictures and labels in memory, before anything is split off or measured."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class RawDataset:
    """Pictures are uint8 `[N, size, size, 3]`, labels int64 `[N]`, each an index into `classes`.

    `validation_images` and `validation_labels` are there only when the source has such a split of its own.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    validation_images: np.ndarray | None = None
    validation_labels: np.ndarray | None = None
