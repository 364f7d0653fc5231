"""The packed splits and dataset.json: what prepare writes, and train, evaluate and export read."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from cifarflow import files
from cifarflow.errors import DataIntegrityError, MissingInputError, printable

Channels = tuple[float, float, float]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
MAX_IMAGE_SIZE = 4096  # pixels; of the sizes that params.yaml allows, the largest is 512
MAX_REASON = 300  # characters


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Pictures uint8 `[N, size, size, 3]` and labels int64 `[N]`."""

    images: np.ndarray
    labels: np.ndarray

    def digest(self) -> str:
        """SHA-256 of shapes and bytes, the same however the file is laid out."""
        digest = hashlib.sha256()
        for array in (self.images, self.labels.astype("<i8", copy=False)):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """What the splits hold. `mean` and `std` are a channel's, over all training pixels, in [0, 1] units."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    source: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    image_size: Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
    mean: Channels
    std: Channels
    counts: dict[str, dict[str, Count]]
    """Pictures by split and class."""
    digests: dict[str, Sha256]
    """`Split.digest` by split."""
    validation_indices_digest: Sha256 | None
    """SHA-256 of the held-out training indices (int64, little endian); none when the source has a split."""


def write_split(path: Path, split: Split) -> None:
    files.write_tensors(path, {"images": split.images, "labels": split.labels})


def read_split(path: Path, *, digest: str | None = None) -> Split:
    """Raises MissingInputError, or DataIntegrityError when the file does not hold a split (of that `Split.digest`)."""
    if not path.is_file():
        raise MissingInputError(path, made_by="prepare")
    tensors = files.read_tensors(path)
    if set(tensors) != {"images", "labels"}:
        raise DataIntegrityError(f"{path} holds {sorted(tensors)}, not images and labels. {_MAKE_ANEW}")
    split = Split(images=tensors["images"], labels=tensors["labels"])
    check_split(split, name=str(path))
    if digest is not None and split.digest() != digest:
        raise DataIntegrityError(
            f"{path} is not the split that dataset.json beside it describes. {_MAKE_ANEW}"
        )
    return split


def check_split(split: Split, *, name: str) -> None:
    """Raises DataIntegrityError when an array is not of the type and shape that a split has."""
    images, labels = split.images, split.labels
    square = images.ndim == 4 and images.shape[1] == images.shape[2] and images.shape[3] == 3
    if images.dtype != np.uint8 or not square:
        found = f"{images.dtype} {list(images.shape)}"
        raise DataIntegrityError(f"{name}: images are {found}, not uint8 [N, size, size, 3]. {_MAKE_ANEW}")
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        found = f"{labels.dtype} {list(labels.shape)}"
        raise DataIntegrityError(f"{name}: labels are {found}, not int64 [{len(images)}]. {_MAKE_ANEW}")


def write_dataset(path: Path, info: DatasetInfo) -> None:
    files.write_json(path, asdict(info))


def read_dataset(path: Path) -> DatasetInfo:
    """Raises MissingInputError, or DataIntegrityError when the file is not a dataset.json."""
    if not path.is_file():
        raise MissingInputError(path, made_by="prepare")
    try:
        return TypeAdapter(DatasetInfo).validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        reason = printable(f"{where}: {fault['msg']}" if where else fault["msg"])[:MAX_REASON]
        raise DataIntegrityError(f"{path} is not a data set's description: {reason}. {_MAKE_ANEW}") from None


_MAKE_ANEW = "Delete it and run `uv run dvc repro prepare`."
