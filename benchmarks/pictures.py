"""CIFAR-10's training pictures where they can be had, else random ones; as a program, a random data/prepared.

uv run python -m benchmarks.pictures FOLDER
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.setting import (
    PROJECT,
    PUBLISHED_TEST_PICTURES,
    PUBLISHED_TRAINING_PICTURES,
    find_archive,
    recipe_on_cpu,
)
from cifarflow.config import Config
from cifarflow.data.packed import Split, read_dataset, read_split
from cifarflow.data.prepare import prepare
from cifarflow.data.progress import plain_lines
from cifarflow.data.raw import RawDataset
from cifarflow.data.sources import SOURCES, FetchContext, ReadContext
from cifarflow.data.sources.cifar10 import VARIABLE
from cifarflow.workspace import Workspace

CLASSES = tuple("0123456789")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Training pictures and where they are from."""

    split: Split
    text: str
    real: bool


def prepared_here() -> Workspace | None:
    """This checkout, if its data/prepared holds CIFAR-10."""
    workspace = Workspace.at(PROJECT, {})
    if not workspace.dataset.is_file() or read_dataset(workspace.dataset).source != "cifar10":
        return None
    return workspace


def training_pictures(config: Config) -> Origin:
    """Of data/prepared, else of the archive, else random ones."""
    if (workspace := prepared_here()) is not None:
        return Origin(split=read_split(workspace.split("train")), text="CIFAR-10 (data/prepared)", real=True)
    if (archive := find_archive()) is not None:
        raw = _read_archive(archive, config)
        split = Split(images=raw.train_images, labels=raw.train_labels)
        return Origin(split=split, text=f"CIFAR-10 ({archive.name})", real=True)
    raw = random_raw(train_count=PUBLISHED_TRAINING_PICTURES, test_count=1)
    split = Split(images=raw.train_images, labels=raw.train_labels)
    return Origin(split=split, text="random pictures: CIFAR-10 is not on this disk", real=False)


def random_raw(*, train_count: int, test_count: int) -> RawDataset:
    """Pictures of CIFAR-10's shape with nothing to learn in them; labels go round the classes."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (train_count + test_count, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(train_count + test_count) % len(CLASSES)
    return RawDataset(
        train_images=images[:train_count],
        train_labels=labels[:train_count],
        test_images=images[train_count:],
        test_labels=labels[train_count:],
        classes=CLASSES,
    )


def prepare_random(root: Path) -> None:
    """Fill data/prepared under `root` with random pictures, as many as CIFAR-10 has."""
    config = recipe_on_cpu("cifar94")
    prepare(
        random_raw(train_count=PUBLISHED_TRAINING_PICTURES, test_count=PUBLISHED_TEST_PICTURES),
        source="cifar10",
        validation_fraction=config.data.validation_fraction,
        seed=config.seed,
        workspace=Workspace.at(root, {}),
    )


def _read_archive(archive: Path, config: Config) -> RawDataset:
    environ: Mapping[str, str] = {**os.environ, VARIABLE: str(archive)}
    source = SOURCES.get("cifar10")
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.at(Path(folder), {})
        source.fetch(
            FetchContext(
                workspace=workspace,
                environ=environ,
                progress=plain_lines,
                cifar10=config.data.cifar10,
                shapes=config.data.shapes,
            )
        )
        return source.read(ReadContext(raw=workspace.raw, seed=config.seed, folder=config.data.folder))


if __name__ == "__main__":
    prepare_random(Path(sys.argv[1]))
