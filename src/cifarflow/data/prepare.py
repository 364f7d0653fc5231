"""Split validation off, measure the training pixels, pack: the same input gives the same bytes."""

import hashlib

import numpy as np

from cifarflow.data.holdout import stratified_holdout
from cifarflow.data.packed import DatasetInfo, Split, check_split, write_dataset, write_split
from cifarflow.data.raw import RawDataset
from cifarflow.errors import DataIntegrityError
from cifarflow.workspace import Workspace

VALIDATION_STREAM = 1
MEASURED_AT_ONCE = 1000


def prepare(
    raw: RawDataset, *, source: str, validation_fraction: float, seed: int, workspace: Workspace
) -> DatasetInfo:
    """Write the three splits, and dataset.json last: where it is, the splits are whole.

    Raises DataIntegrityError when nothing could be learnt from the pictures.
    """
    workspace.dataset.unlink(missing_ok=True)
    train, validation, indices = _split(raw, fraction=validation_fraction, seed=seed)
    test = Split(images=raw.test_images, labels=raw.test_labels)
    splits = {"train": train, "validation": validation, "test": test}
    for name, split in splits.items():
        _check(split, name=name, raw=raw)
    mean, std = measure(train.images)
    for name, split in splits.items():
        write_split(workspace.split(name), split)
    info = DatasetInfo(
        source=source,
        classes=raw.classes,
        image_size=train.images.shape[1],
        mean=mean,
        std=std,
        counts={name: _counts(split, raw.classes) for name, split in splits.items()},
        digests={name: split.digest() for name, split in splits.items()},
        validation_indices_digest=_digest(indices),
    )
    write_dataset(workspace.dataset, info)
    return info


def measure(images: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel over all pixels of uint8 `[N, H, W, 3]`, in [0, 1] units.

    Counted in integers, so exact and independent of order and machine. Raises DataIntegrityError when all
    pixels of a channel are alike.
    """
    histograms = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(images), MEASURED_AT_ONCE):
        chunk = images[start : start + MEASURED_AT_ONCE]
        for channel in range(3):
            histograms[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    red, green, blue = (_moments(histogram.tolist()) for histogram in histograms)
    for name, (_, std) in zip(("red", "green", "blue"), (red, green, blue), strict=True):
        if std == 0:
            raise DataIntegrityError(f"all training pictures are alike: every {name} value is the same.")
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])


def _moments(histogram: list[int]) -> tuple[float, float]:
    """Exact integers up to the last division; n^2 var = n sum(v^2) - sum(v)^2."""
    count = sum(histogram)
    total = sum(value * times for value, times in enumerate(histogram))
    squares = sum(value * value * times for value, times in enumerate(histogram))
    spread = count * squares - total * total
    return total / (255 * count), (spread / (255 * count) ** 2) ** 0.5


def _split(raw: RawDataset, *, fraction: float, seed: int) -> tuple[Split, Split, np.ndarray | None]:
    """Train and validation, and the indices of the latter unless the source has its own."""
    if raw.validation_images is not None and raw.validation_labels is not None:
        own = Split(images=raw.validation_images, labels=raw.validation_labels)
        return Split(images=raw.train_images, labels=raw.train_labels), own, None
    _check_classes(raw.train_labels, raw.classes, least=2)
    kept, held = stratified_holdout(raw.train_labels, fraction=fraction, seed=seed, stream=VALIDATION_STREAM)
    train = Split(images=raw.train_images[kept], labels=raw.train_labels[kept])
    return train, Split(images=raw.train_images[held], labels=raw.train_labels[held]), held


def _check(split: Split, *, name: str, raw: RawDataset) -> None:
    check_split(split, name=f"{name} split")
    if len(split.images) == 0:
        raise DataIntegrityError(f"the {name} split holds no pictures.")
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= len(raw.classes):
        raise DataIntegrityError(f"the {name} split has labels {low}..{high} for {len(raw.classes)} classes.")
    if name == "train":
        _check_classes(split.labels, raw.classes, least=1)
        if all(np.array_equal(image, split.images[0]) for image in split.images):
            count = len(split.images)
            raise DataIntegrityError(
                f"all {count:,} training pictures are alike, pixel by pixel: nothing tells them apart. Give others."
            )


def _check_classes(labels: np.ndarray, classes: tuple[str, ...], *, least: int) -> None:
    """Each class needs a picture to learn from, and one more when some are to be held out."""
    counts = np.bincount(labels, minlength=len(classes))
    poor = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True) if count < least]
    if len(classes) < 2:
        raise DataIntegrityError(f"there is nothing to tell apart: the only class is {', '.join(classes)}.")
    if poor:
        raise DataIntegrityError(f"too few training pictures (at least {least} a class): {', '.join(poor)}.")


def _counts(split: Split, classes: tuple[str, ...]) -> dict[str, int]:
    counts = np.bincount(split.labels, minlength=len(classes)).tolist()
    return dict(zip(classes, counts, strict=True))


def _digest(indices: np.ndarray | None) -> str | None:
    return None if indices is None else hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
