"""What all benchmarks share: the checkout they stand in, its recipes, and where the real pictures may lie."""

import os
from pathlib import Path

from cifarflow.config import Config, load_config
from cifarflow.data.sources.cifar10 import VARIABLE
from cifarflow.provenance import git_state

PROJECT = Path(__file__).resolve().parents[1]
PUBLISHED_TRAINING_PICTURES = 50_000
PUBLISHED_TEST_PICTURES = 10_000


def recipe(name: str, **train: object) -> Config:
    """A recipe, with other values of single params of its section `train`."""
    config = load_config(PROJECT / "recipes" / f"{name}.yaml")
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def recipe_on_cpu(name: str) -> Config:
    """A recipe as it stands, on the processor even where there is a GPU: the figures are those of plain machines."""
    return recipe(name, device="cpu")


def commit_text() -> str:
    """Which code a figure is of."""
    commit, dirty = git_state(PROJECT)
    return f"{commit[:12]}{', with changes that are not in it' if dirty else ''}"


def find_archive() -> Path | None:
    """CIFAR-10's archive on this disk: what CIFAR10_ARCHIVE names, else the one of a folder beside the checkout."""
    beside = PROJECT.parent / "shared" / "data" / "cifar-10-python.tar.gz"
    named = os.environ.get(VARIABLE)
    candidates = [PROJECT / Path(named).expanduser()] if named else []
    return next((path for path in (*candidates, beside) if path.is_file()), None)
