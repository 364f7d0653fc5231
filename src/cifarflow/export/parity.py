"""The gate of the export: on real pictures the ONNX file says what PyTorch says, or it is not shipped."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cifarflow.compute.processor import CACHED_PIXELS
from cifarflow.config.schema import ExportConfig
from cifarflow.data.packed import Split
from cifarflow.errors import ExportParityError
from cifarflow.inference.predictor import Predictor

RESIZED_COUNT = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport:
    """Differences are the largest of any probability; agreement and accuracy are parts of the test split."""

    max_probability_difference: float
    agreement: float
    pytorch_accuracy: float
    onnx_accuracy: float
    difference_by_batch_size: Mapping[int, float]
    resized_difference: float

    def worst_difference(self) -> float:
        """Over all pictures, batch sizes and picture sizes; NaN when any is."""
        every = [
            self.max_probability_difference,
            self.resized_difference,
            *self.difference_by_batch_size.values(),
        ]
        return float(np.max(every))

    def metrics(self) -> dict[str, Any]:
        return {
            "max_probability_difference": self.max_probability_difference,
            "agreement": self.agreement,
            "accuracy_pytorch": self.pytorch_accuracy,
            "accuracy_onnx": self.onnx_accuracy,
            "difference_by_batch_size": {
                str(size): value for size, value in self.difference_by_batch_size.items()
            },
            "difference_resized": self.resized_difference,
        }


def compare(
    classifier: nn.Module, predictor: Predictor, split: Split, *, batch_sizes: tuple[int, ...]
) -> ParityReport:
    """Run both on all pictures of `split`, on one batch of each of `batch_sizes`, and on other picture sizes.

    `classifier` is an `ExportedClassifier` in evaluation mode.
    """
    images, labels = split.images, split.labels
    batch = _batch_size(images)
    expected = _run_pytorch(classifier, images)
    found = np.concatenate([predictor.predict(part) for part in _parts(images, batch)])
    return ParityReport(
        max_probability_difference=_difference(expected, found),
        agreement=float(np.mean(expected.argmax(1) == found.argmax(1))),
        pytorch_accuracy=float(np.mean(expected.argmax(1) == labels)),
        onnx_accuracy=float(np.mean(found.argmax(1) == labels)),
        difference_by_batch_size={
            size: _difference_at(classifier, predictor, images, size) for size in batch_sizes
        },
        resized_difference=float(
            np.max([_difference_of(classifier, predictor, pictures) for pictures in other_sizes(images)])
        ),
    )


def require_parity(report: ParityReport, config: ExportConfig) -> None:
    """Raises ExportParityError with the figures and the limits when the two disagree."""
    worst = report.worst_difference()
    # Written so that NaN fails.
    if worst <= config.max_probability_difference and report.agreement >= config.min_agreement:
        return
    by_size = ", ".join(f"{size}: {value:.2g}" for size, value in report.difference_by_batch_size.items())
    raise ExportParityError(
        "the ONNX model does not compute what PyTorch computes, so it was removed again.\n"
        f"  largest difference of a probability: {worst:.3g} (limit {config.max_probability_difference:g},"
        " params.yaml: export.max_probability_difference)\n"
        f"    whole test split: {report.max_probability_difference:.2g}; by batch size: {by_size};"
        f" other picture sizes: {report.resized_difference:.2g}\n"
        f"  same class on {report.agreement:.4%} of the test pictures (limit {config.min_agreement:.4%},"
        " params.yaml: export.min_agreement)\n"
        f"  accuracy: PyTorch {report.pytorch_accuracy:.4f}, ONNX {report.onnx_accuracy:.4f}\n"
        "Try another export.opset; raise a limit only when the figures above are good enough for your use."
    )


def other_sizes(images: np.ndarray) -> Iterator[np.ndarray]:
    """Some of the pictures, larger and smaller than they were and not square, so that the resize is used."""
    few = images[: min(RESIZED_COUNT, _batch_size(images))]
    side = images.shape[1]
    doubled = few.repeat(2, axis=1).repeat(2, axis=2)
    yield doubled[:, : side * 3 // 2, : side * 5 // 4]
    yield few[:, : side * 5 // 8, : side * 7 // 8]


def _difference_at(classifier: nn.Module, predictor: Predictor, images: np.ndarray, batch_size: int) -> float:
    """Of one batch of exactly that size, taken from the start, and round again when there are too few."""
    return _difference_of(classifier, predictor, images[np.arange(batch_size) % len(images)])


def _difference_of(classifier: nn.Module, predictor: Predictor, pictures: np.ndarray) -> float:
    return _difference(_run_pytorch(classifier, pictures), predictor.predict(pictures))


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.abs(expected - found).max())


def _run_pytorch(classifier: nn.Module, pictures: np.ndarray) -> np.ndarray:
    """Probabilities, computed in parts that fit into memory: the reference has no batch size of its own."""
    with torch.inference_mode():
        parts = [
            classifier(torch.from_numpy(np.ascontiguousarray(part)))
            for part in _parts(pictures, _batch_size(pictures))
        ]
        return torch.cat(parts).numpy()


def _batch_size(images: np.ndarray) -> int:
    return max(1, CACHED_PIXELS // (images.shape[1] * images.shape[2]))


def _parts(images: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(images), size):
        yield images[start : start + size]
