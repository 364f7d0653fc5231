"""A workspace with drawn shapes in it, prepared in a fraction of a second, and configs that train on it in seconds."""

from pathlib import Path
from typing import Any

from cifarflow.config import read_yaml
from cifarflow.config.schema import Config
from cifarflow.data.prepare import prepare
from cifarflow.data.sources import SOURCES, FetchContext, ReadContext
from cifarflow.training.checkpoint import Checkpoints
from cifarflow.training.fit import EpochHook, Fit
from cifarflow.training.task import Task
from cifarflow.workspace import Workspace

PROJECT = Path(__file__).resolve().parents[2]

TINY: dict[str, Any] = {
    "data.source": "shapes",
    "data.validation_fraction": 0.2,
    "data.shapes.train_count": 250,
    "data.shapes.test_count": 100,
    "data.shapes.image_size": 16,
    "model.speednet.widths": [8, 8, 8],
    "train.epochs": 3,
    "train.batch_size": 50,
    "train.micro_batch_size": 25,
    "train.resolution": [],
    "train.precision": "fp32",
    "checkpoint.interval_seconds": 1e9,
}


def small_config(**changes: Any) -> Config:
    """The default recipe with tiny data and network; `changes` are dotted keys with `__` for a dot."""
    tree = read_yaml(PROJECT / "recipes" / "cifar94.yaml")
    for key, value in {**TINY, **{name.replace("__", "."): value for name, value in changes.items()}}.items():
        *sections, leaf = key.split(".")
        section = tree
        for name in sections:
            section = section[name]
        section[leaf] = value
    return Config.model_validate(tree)


def small_workspace(root: Path, config: Config) -> Workspace:
    """A workspace under `root` whose data/prepared holds drawn shapes."""
    workspace = Workspace.at(root, {})
    source = SOURCES.get("shapes")
    source.fetch(
        FetchContext(
            workspace=workspace,
            environ={},
            progress=lambda *_: None,  # pyright: ignore
            cifar10=config.data.cifar10,
            shapes=config.data.shapes,
        )
    )
    prepare(
        source.read(ReadContext(raw=workspace.raw, seed=config.seed, folder=config.data.folder)),
        source="shapes",
        validation_fraction=config.data.validation_fraction,
        seed=config.seed,
        workspace=workspace,
    )
    return workspace


def small_task(workspace: Workspace, config: Config) -> Task:
    return Task.load(config.train, seed=config.seed, workspace=workspace)


def small_fit(
    workspace: Workspace, config: Config, *, checkpoints: Checkpoints, on_epoch: EpochHook = lambda _: None
) -> Fit:
    """A run that is ready to start, or to go on from `checkpoints`."""
    task = small_task(workspace, config)
    model = task.new_model(config.model, seed=config.seed)
    return Fit.start(task, model, checkpoints=checkpoints, on_epoch=on_epoch)
