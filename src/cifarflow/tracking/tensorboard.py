"""TensorBoard as a view that may fail: a fault in it is one warning, never the end of a training."""

import contextlib
import logging
import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
BEFORE_ALL_STEPS = -1
HISTOGRAM_BINS = 64


class TensorboardView:
    """Writes one TensorBoard run; after the first fault it is silent.

    What an earlier, killed process wrote from `first_step` on is hidden, so that no step shows twice.
    Without a folder it does nothing.
    """

    def __init__(self, folder: Path | None, *, first_step: int | None = None) -> None:
        self._first_step = first_step
        self._writer: SummaryWriter | None = None
        self._quiet = contextlib.ExitStack()
        if folder is not None:
            with self._guarded("writer", step=None):
                self._writer = self._open(folder)

    def scalars(self, metrics: Mapping[str, float], *, step: int) -> None:
        with self._guarded("scalars", step=step) as writer:
            for name, value in metrics.items():
                writer.add_scalar(chart_of(name), value, step)
            writer.flush()

    def pictures(self, tag: str, images: np.ndarray, *, step: int) -> None:
        """`images` is uint8 [N, H, W, 3]; they show as one grid."""
        with self._guarded(f"pictures {tag!r}", step=step) as writer:
            writer.add_images(tag, images, step, dataformats="NHWC")

    def histograms(self, tensors: "Mapping[str, torch.Tensor]", *, step: int) -> None:
        with self._guarded("histograms", step=step) as writer:
            for name, tensor in tensors.items():
                writer.add_histogram_raw(name, **histogram(tensor), global_step=step)

    def graph(self, model: "torch.nn.Module", example: "torch.Tensor") -> None:
        """Drawn once; a training that goes on has it from its first start."""
        with self._guarded("graph", step=BEFORE_ALL_STEPS, fatal=False) as writer, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit, which traces, is deprecated
            writer.add_graph(model, example, use_strict_trace=False)

    def close(self) -> None:
        with self._quiet, self._guarded("close", step=None) as writer:
            writer.close()

    @contextlib.contextmanager
    def _guarded(
        self, what: str, *, step: int | None, fatal: bool = True
    ) -> "Iterator[SummaryWriter | _Nowhere]":
        """The writer, or a stand-in that does nothing; a fatal fault inside the block ends the view."""
        try:
            yield self._writer_for(step)
        except Exception as error:  # disk full, an odd model, a broken install: the training matters more
            fatal = fatal or isinstance(error, OSError)
            reason = f"{type(error).__name__}: {error}"
            effect = "TensorBoard stops here" if fatal else "TensorBoard goes on without it"
            logger.warning("TensorBoard: no %s (%s). %s, the training goes on.", what, reason, effect)
            if fatal:
                self._writer = None

    def _open(self, folder: Path) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        self._quiet.enter_context(_no_traceback_of_writers())
        return SummaryWriter(str(folder), purge_step=self._first_step)

    def _writer_for(self, step: int | None) -> "SummaryWriter | _Nowhere":
        shown_already = step is not None and self._first_step is not None and step < self._first_step
        return self._writer if self._writer is not None and not shown_already else _Nowhere()


@contextlib.contextmanager
def _no_traceback_of_writers() -> Iterator[None]:
    """TensorBoard's thread keeps a fault for the next call, where it is warned of, and has a traceback printed too."""
    from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

    usual = threading.excepthook

    def hook(fault: threading.ExceptHookArgs) -> None:
        if not isinstance(fault.thread, _AsyncWriterThread):
            usual(fault)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = usual


class _Nowhere:
    """Takes every call of a SummaryWriter and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def histogram(tensor: "torch.Tensor") -> dict[str, Any]:
    """The finite values of `tensor` in bins of equal width, as `SummaryWriter.add_histogram_raw` takes them.

    Counted by torch: `add_histogram` has numpy sort the values into 1,500 bins, which takes several times as long.
    """
    import torch

    values = tensor.detach().float().flatten().cpu()  # there, since torch.histc on a GPU is not deterministic
    total = values.sum(dtype=torch.float64).item()
    if not math.isfinite(total):
        values = values[values.isfinite()]
        total = values.sum(dtype=torch.float64).item()
    low, high = values.aminmax() if len(values) else (values.new_zeros(()), values.new_zeros(()))
    width = (high - low).item() / HISTOGRAM_BINS or 1.0  # all values alike: one bin holds them
    counts = values.histc(HISTOGRAM_BINS, min=low.item(), max=low.item() + width * HISTOGRAM_BINS)
    return {
        "min": low.item(),
        "max": high.item(),
        "num": len(values),
        "sum": total,
        "sum_squares": torch.linalg.vector_norm(values, dtype=torch.float64).item() ** 2,
        "bucket_limits": [low.item() + width * (number + 1) for number in range(HISTOGRAM_BINS)],
        "bucket_counts": counts.tolist(),
    }


def chart_of(metric: str) -> str:
    """`train_loss` becomes `loss/train`, so that the splits of one quantity stand side by side."""
    split, _, quantity = metric.partition("_")
    return f"{quantity}/{split}" if split in SPLITS and quantity else metric
