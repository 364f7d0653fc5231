"""From logits to the files of the evaluate stage: plots for DVC and pictures for people."""

import contextlib
import csv
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cifarflow import files
from cifarflow.evaluation import figures, metrics

logger = logging.getLogger(__name__)

MISSING_CHARACTER = "Glyph .* missing from font"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """A split and what the model said: images uint8 `[N, H, W, 3]`, labels int64 `[N]`, logits float32 `[N, C]`."""

    images: np.ndarray
    labels: Tensor
    logits: Tensor
    averaged_logits: Tensor
    classes: Sequence[str]


def write_report(result: Evaluated, plots: Path) -> tuple[dict[str, Any], list[Path]]:
    """Write every plot into `plots`; returns the metrics and the paths written."""
    summary = metrics.summary(result.logits, result.averaged_logits, result.labels, result.classes)
    predicted = result.logits.argmax(1).numpy()
    actual = result.labels.numpy()
    matrix = metrics.confusion(predicted, actual, len(result.classes))
    table = summary["per_class"]
    recall, precision = ([table[name][key] for name in result.classes] for key in ("recall", "precision"))
    drawn = {
        "confusion.png": figures.confusion_figure(matrix, result.classes),
        "per_class.png": figures.per_class_figure(recall, precision, result.classes),
        "mistakes.png": figures.mistakes_figure(
            result.images, result.logits.softmax(1).numpy(), actual, result.classes
        ),
    }
    with _missing_characters_told_once():
        for name, figure in drawn.items():
            figures.save_figure(figure, plots / name)
    _write_csv(
        plots / "confusion.csv", ("actual", "predicted"), _named_pairs(actual, predicted, result.classes)
    )
    rows = [
        (name, *(f"{table[name][key]:.6f}" for key in ("precision", "recall", "f1")))
        for name in result.classes
    ]
    _write_csv(plots / "per_class.csv", ("class", "precision", "recall", "f1"), rows)
    return summary, [plots / name for name in (*drawn, "confusion.csv", "per_class.csv")]


@contextlib.contextmanager
def _missing_characters_told_once() -> Iterator[None]:
    """One line for all characters that no font has, in place of one for each of them in each figure."""
    with warnings.catch_warnings(record=True) as told:
        warnings.filterwarnings("always", MISSING_CHARACTER)
        yield
    missing = [one for one in told if re.match(MISSING_CHARACTER, str(one.message))]
    if missing:
        logger.warning(
            "no installed font has all characters of the class names, so plots show boxes; Noto Sans CJK has Chinese"
        )
    for other in told:
        if other not in missing:
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)


def _named_pairs(actual: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> list[tuple[str, str]]:
    return [(classes[int(a)], classes[int(p)]) for a, p in zip(actual, predicted, strict=True)]


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    files.write_text(path, text.getvalue())
