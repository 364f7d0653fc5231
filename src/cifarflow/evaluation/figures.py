"""Pictures of results, small enough for Git and made of nothing but the results: equal input gives equal bytes."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from cifarflow import files

INK, ACCENT = "#20262e", "#2a6f97"
LARGEST_INCHES = 40.0
"""Of a side: with hundreds of classes a picture would take gigabytes while it is drawn."""
PNG_METADATA = {"Software": None}
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
)
CHINESE_FONTS += ("PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Arial Unicode MS")
INSTALLED = {font.name for font in fontManager.ttflist}
STYLE = {
    # Names of classes are a user's folders: a `$` in them is no formula, and they may be Chinese.
    "text.parse_math": False,
    "font.family": ["DejaVu Sans", *(name for name in CHINESE_FONTS if name in INSTALLED)],
    "savefig.facecolor": "white",
}
"""For making a figure and for writing it: ticks are made while it is drawn."""


@matplotlib.rc_context(STYLE)
def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """The confusion matrix `[C, C]` with its counts; the diagonal is left pale so that the mistakes stand out."""
    mistakes = matrix.astype(float)
    np.fill_diagonal(mistakes, 0)
    size = min(LARGEST_INCHES, max(4.5, 0.6 * len(classes) + 2))
    figure = Figure(figsize=(size, size * 0.92), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mistakes, cmap="Blues", vmin=0, vmax=max(1.0, mistakes.max() * 1.3))
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="actual")
    axes.set_title("Confusion matrix (colour: mistakes)", loc="left", fontsize=11)
    if len(classes) <= 20:
        _write_counts(axes, matrix, dark_from=0.55 * mistakes.max())
    return figure


def _write_counts(axes: Axes, matrix: np.ndarray, *, dark_from: float) -> None:
    for row, column in np.ndindex(*matrix.shape):
        right = row == column
        axes.text(
            column,
            row,
            f"{matrix[row, column]}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if not right and matrix[row, column] > dark_from else INK,
            weight="bold" if right else "normal",
        )


@matplotlib.rc_context(STYLE)
def mistakes_figure(
    images: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    *,
    count: int = 24,
) -> Figure:
    """The most confident mistakes: pictures uint8 `[N, H, W, 3]` with what was said and what is right."""
    predicted = probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:count]
    columns = 8
    rows = max(1, -(-len(worst) // columns))
    height = rows * 1.55 + 0.4
    figure = Figure(figsize=(columns * 1.15, height))
    figure.suptitle(
        f"The {len(worst)} most confident mistakes of {len(wrong)}",
        x=0.01,
        y=1 - 0.06 / height,
        ha="left",
        fontsize=11,
    )
    # Placed in inches: a layout engine would take longer for these axes than all drawing does.
    places = {"left": 0.01, "right": 0.99, "bottom": 0.05 / height, "top": 1 - 0.7 / height}
    gaps = {"wspace": 0.08, "hspace": 0.46}
    for axes in figure.subplots(rows, columns, squeeze=False, gridspec_kw={**places, **gaps}).flat:
        axes.axis("off")
    for axes, index in zip(figure.axes, worst, strict=False):
        said = classes[int(predicted[index])]
        axes.imshow(images[index], interpolation="nearest")
        axes.set_title(
            f"{said} {probabilities[index].max():.2f}\nnot {classes[int(labels[index])]}",
            fontsize=7,
            color=INK,
        )
    return figure


@matplotlib.rc_context(STYLE)
def per_class_figure(recall: Sequence[float], precision: Sequence[float], classes: Sequence[str]) -> Figure:
    """Recall and precision of each class as two dots on a line, worst recall first."""
    order = [int(index) for index in np.argsort(recall, kind="stable")]
    places = np.arange(len(classes))
    sorted_recall, sorted_precision = np.asarray(recall)[order], np.asarray(precision)[order]
    height = min(LARGEST_INCHES, 0.34 * len(classes) + 1.2)
    figure = Figure(figsize=(6.5, height), layout="constrained")
    axes = figure.subplots()
    axes.hlines(places, sorted_recall, sorted_precision, color="#b9c8d4", linewidth=2)
    axes.plot(sorted_recall, places, "o", color=ACCENT, markersize=7, label="recall")
    axes.plot(
        sorted_precision, places, "o", color=INK, markerfacecolor="white", markersize=6, label="precision"
    )
    axes.set_yticks(places, [classes[index] for index in order])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right", frameon=False, ncols=2, bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def save_figure(figure: Figure, path: Path) -> None:
    with files.atomic_open(path) as stream:
        figure.savefig(stream, format="png", dpi=110, metadata=PNG_METADATA)
