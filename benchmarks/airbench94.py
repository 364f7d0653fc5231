"""The public 94 % record to compare with, written anew from its description and hyperparameters.

airbench94 with Muon (Keller Jordan, github.com/KellerJordan/cifar10-airbench, `airbench94_muon.py`, and
arXiv:2404.00498): 8 epochs over 50,000 pictures in batches of 2,000, each one forward pass at 32 pixels; nesterov SGD
for biases and head, Muon for filters; the bias of the whitening layer is trained for the first 3 epochs.
Run here in channels_last without compile, by autocast over float32 weights: in bf16 where the processor has units for
it, else in float32. Without units a step in bf16 takes 200 s instead of 14 (AMD Zen 3, 2 cores): no one to beat.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarflow.compute.plan import ComputePlan
from cifarflow.training.muon import Muon

EPOCHS = 8
TRAINING_PICTURES = 50_000
BATCH_SIZE = 2_000
WHITEN_BIAS_EPOCHS = 3
LABEL_SMOOTHING = 0.2


def steps() -> int:
    return EPOCHS * TRAINING_PICTURES // BATCH_SIZE


class Block(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding="same", bias=False)
        self.norm1 = nn.BatchNorm2d(width_out, eps=1e-12, momentum=0.4)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding="same", bias=False)
        self.norm2 = nn.BatchNorm2d(width_out, eps=1e-12, momentum=0.4)
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Airbench94(nn.Module):
    """Normalised pictures `[N, 3, 32, 32]` to logits `[N, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        self.blocks = nn.Sequential(Block(24, 64), Block(64, 256), Block(256, 256))
        self.head = nn.Linear(256, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.blocks(F.gelu(self.whiten(x))), 3)
        return self.head(x.flatten(1)) / x.shape[1]


class Reference:
    """The record's training step, in the precision of `compute`."""

    def __init__(self, compute: ComputePlan) -> None:
        torch.manual_seed(0)
        self.compute = compute
        self.model = Airbench94().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        filters = [p for p in self.model.blocks.parameters() if p.ndim == 4]
        biases = [p for p in self.model.blocks.parameters() if p.ndim == 1 and p.requires_grad]
        bias = self.model.whiten.bias
        assert bias is not None
        self.whiten_bias = bias
        groups = [
            {"params": [bias, *biases], "lr": 0.053, "weight_decay": 2e-6 * BATCH_SIZE / 0.053},
            {"params": [self.model.head.weight], "lr": 0.67, "weight_decay": 2e-6 * BATCH_SIZE / 0.67},
        ]
        self.optimizers = [
            torch.optim.SGD(groups, momentum=0.85, nesterov=True),
            Muon(filters, lr=0.24, momentum=0.6),
        ]

    def step(self, pixels: Tensor, labels: Tensor, *, number: int) -> None:
        """Step `number` of `steps()`, on float pixels `[2000, 3, 32, 32]` and int64 labels."""
        self.whiten_bias.requires_grad_(number < steps() * WHITEN_BIAS_EPOCHS // EPOCHS)
        self.model.zero_grad(set_to_none=True)
        with self.compute.autocast():
            logits = self.model(pixels)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=LABEL_SMOOTHING, reduction="sum")
        loss.backward()
        with self.compute.autocast():  # the record's own Muon computes in bf16
            for optimizer in self.optimizers:
                optimizer.step()
