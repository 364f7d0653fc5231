"""Numbers that say how good predictions are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor


def accuracy(logits: Tensor, labels: Tensor, *, top: int = 1) -> float:
    """Part of the pictures whose label is among the `top` largest of logits `[N, C]`; at most C are looked at."""
    best = logits.topk(min(top, logits.shape[1]), dim=1).indices
    return (best == labels.unsqueeze(1)).any(1).double().mean().item()


def cross_entropy(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood in nats."""
    return (F.cross_entropy(logits.double(), labels, reduction="sum") / len(labels)).item()


def per_class(predicted: np.ndarray, actual: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 (0 where undefined) and count of each class."""
    rows: Any = precision_recall_fscore_support(
        actual,
        predicted,
        labels=range(len(classes)),
        zero_division=0.0,  # pyright: ignore[reportArgumentType] - the stub says str, the docs and the code 0.0
    )
    return [
        {"class": name, "precision": float(p), "recall": float(r), "f1": float(f), "count": int(n)}
        for name, p, r, f, n in zip(classes, *rows, strict=True)
    ]


def confusion(predicted: np.ndarray, actual: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 `[C, C]`: row is the actual class, column the predicted one."""
    return confusion_matrix(actual, predicted, labels=range(num_classes))


def summary(
    logits: Tensor, averaged_logits: Tensor, labels: Tensor, classes: Sequence[str]
) -> dict[str, Any]:
    """All metrics of a split; `averaged_logits` come from test-time augmentation."""
    table = per_class(torch.argmax(logits, 1).numpy(), labels.numpy(), classes)
    return {
        "accuracy": accuracy(logits, labels),
        "accuracy_tta": accuracy(averaged_logits, labels),
        "accuracy_top5": accuracy(logits, labels, top=5),
        "loss": cross_entropy(logits, labels),
        "macro_f1": float(np.mean([row["f1"] for row in table])),
        "per_class": {row.pop("class"): row for row in table},
    }
