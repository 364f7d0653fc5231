"""All that a training run has to remember between two steps, as plain values and tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(kw_only=True, slots=True)
class TrainState:
    """Where a run stands; `snapshot` and `restore` are exact, so a resumed run ends as an uninterrupted one."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    # The part of the present epoch that is done:
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0

    def record(self, *, loss_sum: float, correct: int, count: int, seconds: float) -> None:
        self.step += 1
        self.loss_sum += loss_sum
        self.correct += correct
        self.seen += count
        self.seconds += seconds

    def finish_epoch(self, extra: Mapping[str, float]) -> dict[str, float]:
        """Close the present epoch: its row of the history, with the sums divided once."""
        row = {
            "epoch": float(len(self.history) + 1),
            "step": float(self.step),
            "train_loss": self.loss_sum / self.seen,
            "train_accuracy": self.correct / self.seen,
            "images_per_second": self.seen / self.seconds,
            "seconds": self.seconds,
            **extra,
        }
        self.history.append(row)
        self.loss_sum, self.correct, self.seen, self.seconds = 0.0, 0, 0, 0.0
        return row

    def snapshot(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "history": self.history,
            "epoch_so_far": [self.loss_sum, self.correct, self.seen, self.seconds],
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        self.model.load_state_dict(snapshot["model"])
        for optimizer, saved in zip(self.optimizers, snapshot["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = snapshot["step"]
        self.history = snapshot["history"]
        self.loss_sum, self.correct, self.seen, self.seconds = snapshot["epoch_so_far"]
