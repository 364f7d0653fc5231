"""How hard each training picture is by now, and which of the drawn ones a step trains on.

Most pictures are learnt long before training ends, and a step on them changes little. Selective backpropagation (Jiang
et al. 2019, arXiv:1910.00762) leaves such pictures out after a forward pass that tells their loss. Here the loss that a
picture had when it was last trained on tells, at no cost. A picture that is left out keeps that loss while those of the
others fall, so its turn comes again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


def kept_of(count: int, fraction: float) -> int:
    """How many of `count` drawn pictures a step trains on, 1 or more."""
    return max(1, round(fraction * count))


@dataclass(frozen=True, kw_only=True, slots=True)
class Difficulty:
    """What the network last said about each of the N training pictures."""

    losses: Tensor
    """float32 `[N]`; infinite for a picture that was never trained on."""
    right: Tensor
    """bool `[N]`: whether the answer was the right one."""

    @classmethod
    def unknown(cls, count: int, device: torch.device) -> "Difficulty":
        losses = torch.full((count,), torch.inf, device=device)
        return cls(losses=losses, right=torch.zeros(count, dtype=torch.bool, device=device))

    def hardest(self, indices: Tensor, fraction: float) -> Tensor:
        """The given part of `indices` (int64 `[B]`), one at least: those of the largest losses, in their old order."""
        count = kept_of(len(indices), fraction)
        if count == len(indices):
            return indices
        indices = indices.to(self.losses.device, non_blocking=True)
        # Stable, so that equal losses (as at the start) are taken in the same order everywhere.
        order = self.losses[indices].argsort(descending=True, stable=True)
        return indices[order[:count].sort().values]

    def learn(self, indices: Tensor, losses: Tensor, right: Tensor) -> None:
        """Note what a step found for the pictures `indices`: float32 and bool `[B]`."""
        where = indices.to(self.losses.device)
        self.losses[where] = losses
        self.right[where] = right

    def means(self) -> tuple[float, float]:
        """Loss and accuracy over all pictures trained on so far, each as it was last seen."""
        known = self.losses.isfinite()
        return self.losses[known].double().mean().item(), self.right[known].double().mean().item()

    def snapshot(self) -> dict[str, Tensor]:
        return {"losses": self.losses, "right": self.right}

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        self.losses.copy_(snapshot["losses"])
        self.right.copy_(snapshot["right"])
