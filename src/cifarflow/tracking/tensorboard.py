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
BEFORE_TRAINING = 0  # the step of what is shown once, when a training starts; its epochs count from 1
COUNTED = 1 << 16  # values, of which a bin's share is known to a hundredth of the largest
HISTOGRAM_BINS = 30  # as TensorBoard draws: it would merge more, and each costs its writer time


class TensorboardView:
    """Writes one TensorBoard run; after the first fault it is silent. Without a folder it does nothing.

    Where an earlier process was killed, the first step that this one writes, and all behind it, are hidden first: a
    training that goes on repeats them, so each shows once. Each call returns when the file has what it wrote. So a
    step whose calls have all returned is whole, and a training may go on behind it.

    `goes_on`: an earlier process recorded a step, so it has shown all that belongs before training.
    """

    def __init__(self, folder: Path | None, *, goes_on: bool = False) -> None:
        self._folder = folder
        self._goes_on = goes_on
        self._writer: SummaryWriter | None = None
        self._quiet = contextlib.ExitStack()

    def scalars(self, metrics: Mapping[str, float], *, step: int) -> None:
        with self._guarded("scalars", step=step) as writer:
            for name, value in metrics.items():
                writer.add_scalar(chart_of(name), value, step)

    def pictures(self, tag: str, images: np.ndarray, *, step: int) -> None:
        """`images` is uint8 [N, H, W, 3]; they show as one grid."""
        if step == BEFORE_TRAINING and self._goes_on:
            return
        with self._guarded(f"pictures {tag!r}", step=step) as writer:
            writer.add_images(tag, images, step, dataformats="NHWC")

    def histograms(self, tensors: "Mapping[str, torch.Tensor]", *, step: int) -> None:
        with self._guarded("histograms", step=step) as writer:
            for name, tensor in tensors.items():
                writer.add_histogram_raw(name, **histogram(tensor), global_step=step)

    def graph(self, model: "torch.nn.Module", example: "torch.Tensor") -> None:
        """Drawn once; a training that goes on has it from its first start."""
        if self._goes_on:
            return
        with (
            self._guarded("graph", step=BEFORE_TRAINING, fatal=False) as writer,
            warnings.catch_warnings(),
        ):
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
        writer = self._writer_for(step)
        try:
            yield writer
            if step is not None:
                writer.flush()
        except Exception as error:  # disk full, an odd model: the training matters more
            self._fail(what, error, fatal=fatal or isinstance(error, OSError))

    def _writer_for(self, step: int | None) -> "SummaryWriter | _Nowhere":
        """Opened for the first step that is written: which one that is, only the training knows."""
        if self._writer is None and self._folder is not None and step is not None:
            try:
                self._writer = self._open(self._folder, first_step=step)
            except Exception as error:  # no such disk, a broken install
                self._fail("writer", error, fatal=True)
        return self._writer or _Nowhere()

    def _open(self, folder: Path, *, first_step: int) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        self._quiet.enter_context(_no_traceback_of_writers())
        return SummaryWriter(str(folder), purge_step=first_step)

    def _fail(self, what: str, error: Exception, *, fatal: bool) -> None:
        reason = f"{type(error).__name__}: {error}"
        effect = "TensorBoard stops here" if fatal else "TensorBoard goes on without it"
        logger.warning("TensorBoard: no %s (%s). %s, the training goes on.", what, reason, effect)
        if fatal:
            self._writer = self._folder = None


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

    Counted by torch: `add_histogram` has numpy sort the values into 1,500 bins, which takes several times as long. Of
    more than COUNTED values some that many are, evenly spread, and stand for all; the other figures are of all.
    """
    import torch

    values = tensor.detach().float().flatten().cpu()  # there, since torch.histc on a GPU is not deterministic
    total = values.sum(dtype=torch.float64).item()
    if not math.isfinite(total):
        values = values[values.isfinite()]
        total = values.sum(dtype=torch.float64).item()
    low, high = values.aminmax() if len(values) else (values.new_zeros(()), values.new_zeros(()))
    width = (high - low).item() / HISTOGRAM_BINS or 1.0  # all values alike: one bin holds them
    counted = values[:: _stride(len(values))]
    counts = counted.histc(HISTOGRAM_BINS, min=low.item(), max=low.item() + width * HISTOGRAM_BINS)
    counts *= len(values) / max(1, len(counted))
    return {
        "min": low.item(),
        "max": high.item(),
        "num": len(values),
        "sum": total,
        "sum_squares": torch.linalg.vector_norm(values, dtype=torch.float64).item() ** 2,
        "bucket_limits": [low.item() + width * (number + 1) for number in range(HISTOGRAM_BINS)],
        "bucket_counts": counts.tolist(),
    }


def _stride(count: int) -> int:
    """From one value that is counted to the next: prime to 2 and 3, so that each tap of 3x3 filters has its turn."""
    stride = max(1, math.ceil(count / COUNTED))
    while math.gcd(stride, 6) > 1:
        stride += 1
    return stride


def chart_of(metric: str) -> str:
    """`train_loss` becomes `loss/train`, so that the splits of one quantity stand side by side."""
    split, _, quantity = metric.partition("_")
    return f"{quantity}/{split}" if split in SPLITS and quantity else metric
