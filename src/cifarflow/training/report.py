"""What a training run reports while it runs, and the files that it leaves."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifarflow import files
from cifarflow.config.schema import TensorboardConfig
from cifarflow.provenance import processor_name
from cifarflow.tracking.tracker import Tracker
from cifarflow.training.state import TrainState
from cifarflow.training.task import Task

HISTORY_COLUMNS = (
    "epoch",
    "step",
    "train_loss",
    "validation_loss",
    "train_accuracy",
    "validation_accuracy",
    "learning_rate",
    "images_per_second",
    "seconds",
    "pixels",
)
SHOWN_IN_GRAPH = 2


def write_history(rows: list[dict[str, float]], path: Path) -> None:
    """All epochs so far as a CSV file, one row an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(row[name]) for name in HISTORY_COLUMNS} for row in rows)
    files.write_text(path, text.getvalue())


def _cell(value: float) -> str:
    """Six digits, and whole numbers, such as steps, with all of theirs."""
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorder:
    """What is shown of a run while it trains: plots/history.csv, and the tracker's MLflow and TensorBoard."""

    tracker: Tracker
    views: TensorboardConfig
    history: Path

    def start(self, task: Task, model: nn.Module) -> None:
        """Training pictures before and after augmentation, and the network as a graph."""
        tensorboard, images = self.tracker.tensorboard, task.train.images
        if self.views.pictures:
            first = torch.arange(min(self.views.pictures, len(images)))
            augmented = task.augmentation(first, epoch=0, step=0)
            tensorboard.pictures("pictures/before", images[first].cpu().numpy(), step=0)
            tensorboard.pictures("pictures/augmented", augmented.cpu().numpy(), step=0)
        if self.views.graph:
            example = task.preprocess(task.dataset.image_size)(images[:SHOWN_IN_GRAPH])
            tensorboard.graph(model, example)

    def epoch(self, state: TrainState) -> None:
        """Pass the newest row of the history on, and what the weights look like by now."""
        row = state.history[-1]
        epoch = int(row["epoch"])
        write_history(state.history, self.history)
        self.tracker.metrics({name: row[name] for name in HISTORY_COLUMNS[1:]}, step=epoch)
        if self.views.histograms:
            self.tracker.tensorboard.histograms(_weights_and_gradients(state.model), step=epoch)


def train_metrics(state: TrainState, task: Task) -> dict[str, Any]:
    """What metrics/train.json holds: the last epoch, the whole run's time, and how it was computed."""
    last = state.history[-1]
    seconds = sum(row["seconds"] for row in state.history)
    return {
        **{name: last[name] for name in HISTORY_COLUMNS[2:6]},
        "epochs": task.config.epochs,
        "steps": state.step,
        "seconds": round(seconds, 3),
        "images_per_second": round(
            sum(row["images_per_second"] * row["seconds"] for row in state.history) / seconds, 1
        ),
        "weights": sum(parameter.numel() for parameter in state.model.parameters()),
        "compute": {
            **task.compute.describe(),
            "processor": processor_name(),
            **gpu_name(task.compute.device),
            "processes": task.processes.count,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }


def gpu_name(device: torch.device) -> dict[str, str]:
    return {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}


def _weights_and_gradients(model: nn.Module) -> Mapping[str, torch.Tensor]:
    named = dict(model.named_parameters())
    gradients = {f"gradients/{name}": p.grad for name, p in named.items() if p.grad is not None}
    return {**{f"weights/{name}": p.detach() for name, p in named.items()}, **gradients}
