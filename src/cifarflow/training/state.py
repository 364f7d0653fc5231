"""All that a training run has to remember between two steps, as plain values and tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifarflow.training.difficulty import Difficulty

SNAPSHOT_KEYS = frozenset(
    {"model", "average", "optimizers", "step", "history", "difficulty", "epoch_so_far", "gradients"}
)


@dataclass(kw_only=True, slots=True)
class TrainState:
    """Where a run stands; `snapshot` and `restore` are exact, so a resumed run ends as an uninterrupted one."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    difficulty: Difficulty
    average_decay: float = 0.0
    average: AveragedModel | None = None
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    # The part of the present epoch that is done:
    seen: int = 0
    seconds: float = 0.0

    def record(self, indices: Tensor, losses: Tensor, right: Tensor) -> None:
        """Note a step on the pictures `indices` (int64 `[B]`) and what it found for each."""
        self.step += 1
        self.difficulty.learn(indices, losses, right)
        self.seen += len(indices)

    def finish_epoch(self, extra: Mapping[str, float]) -> dict[str, float]:
        """Close the present epoch: its row of the history. Loss and accuracy are over all pictures, as last seen."""
        train_loss, train_accuracy = self.difficulty.means()
        row = {
            "epoch": float(len(self.history) + 1),
            "step": float(self.step),
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "images_per_second": self.seen / self.seconds,
            "seconds": self.seconds,
            **extra,
        }
        self.history.append(row)
        self.seen, self.seconds = 0, 0.0
        return row

    @property
    def result(self) -> nn.Module:
        """What is validated and kept: the average of the weights once there is one."""
        return self.model if self.average is None else self.average.module

    def average_weights(self) -> None:
        """Take the present weights and statistics into their exponential moving average, which starts as a copy."""
        if self.average is None:
            self.average = self._new_average()
        self.average.update_parameters(self.model)

    def _new_average(self) -> AveragedModel:
        return AveragedModel(
            self.model, multi_avg_fn=get_ema_multi_avg_fn(self.average_decay), use_buffers=True
        )

    def is_finite(self) -> bool:
        """Whether every weight and statistic is a number: a step's loss tells of the weights before it."""
        kept = [*self.model.state_dict().values(), *self.result.state_dict().values()]
        return all(bool(tensor.isfinite().all()) for tensor in kept)

    def snapshot(self, *, gradients: bool) -> dict[str, Any]:
        """`gradients`: with those of the last step, which are still to be shown when it was an epoch's last."""
        shown = [parameter.grad for parameter in self.model.parameters()] if gradients else []
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "history": self.history,
            "difficulty": self.difficulty.snapshot(),
            "epoch_so_far": [self.seen, self.seconds],
            "gradients": shown,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Raises what its parts raise (RuntimeError, ValueError ...) for a snapshot of something else."""
        self.model.load_state_dict(snapshot["model"])
        if snapshot["average"] is not None:
            self.average = self._new_average()
            self.average.load_state_dict(snapshot["average"])
        for optimizer, saved in zip(self.optimizers, snapshot["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = snapshot["step"]
        self.history = snapshot["history"]
        self.difficulty.restore(snapshot["difficulty"])
        self.seen, self.seconds = snapshot["epoch_so_far"]
        if gradients := snapshot["gradients"]:
            for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter)
