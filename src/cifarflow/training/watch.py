"""How steps go, and whether the loss is still a number: asked seldom where asking is dear."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

STEPS_UNSEEN_ON_A_GPU = 32


class NotFiniteError(Exception):
    """A loss is infinite or not a number."""

    def __init__(self, loss: float, steps_ago: int) -> None:
        super().__init__(f"loss {loss}, {steps_ago} steps ago")
        self.loss = loss
        self.steps_ago = steps_ago


class Seen(NamedTuple):
    """Means over the pictures that a step trained on."""

    loss: float
    accuracy: float


@dataclass(slots=True)
class LossWatch:
    """The means of the last steps. Reading one makes a processor wait for the GPU, which then runs dry."""

    last: Seen | None = None
    """Those of the last step that was read, if one was."""
    _unseen: list[Tensor] = field(default_factory=list)

    def add(self, losses: Tensor, right: Tensor) -> None:
        """Note a step's losses, float32 `[B]`, and who was right, bool `[B]`."""
        self._unseen.append(torch.stack((losses, right.float())).mean(1))

    def is_due(self) -> bool:
        """After every step on a processor, where looking costs nothing, and seldom on a GPU."""
        return len(self._unseen) >= (STEPS_UNSEEN_ON_A_GPU if self._unseen[0].is_cuda else 1)

    def look(self) -> None:
        """Read the losses not read yet. Raises NotFiniteError for the first that is infinite or not a number."""
        if not self._unseen:
            return
        steps = [Seen(*means) for means in torch.stack(self._unseen).tolist()]
        self._unseen.clear()
        for number, seen in enumerate(steps, 1):
            if not math.isfinite(seen.loss):
                raise NotFiniteError(seen.loss, steps_ago=len(steps) - number)
        self.last = steps[-1]
