"""Steps recorded as CUDA graphs: a small network's kernels are shorter than the launches that a graph saves.

The method is that of PyTorch's notes on CUDA semantics (docs.pytorch.org, "CUDA Graphs"): static inputs, a first pass
that is not recorded, gradients in the graph's own memory.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cifarflow.errors import ConfigError
from cifarflow.models.preprocess import Preprocess
from cifarflow.training.step import Step

logger = logging.getLogger(__name__)

Kind = tuple[int, Preprocess, tuple[bool, ...]]
"""Steps of one graph: pictures in the batch, what is made of them, and which parameters are trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """One step as a graph, with the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    labels: Tensor
    losses: Tensor
    right: Tensor
    gradients: list[Tensor | None]


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """Called as a `Step` is, on a GPU. The losses that it returns are overwritten by the next call.

    The first step of a kind runs as it is: then algorithms are chosen, momentum buffers made, a compiler runs. The
    second is recorded, which changes no weight, and replayed, as are all that follow. Learning rates must be tensors.
    """

    step: Step
    recordings: dict[Kind, Recording | None] = field(default_factory=dict)
    """None for a kind that ran once."""

    def __call__(
        self, images: Tensor, labels: Tensor, preprocess: Preprocess, *, number: int = 0
    ) -> tuple[Tensor, Tensor]:
        """`number` decides nothing: a step that draws at random is not recorded."""
        parameters = list(self.step.model.parameters())
        kind = (len(images), preprocess, tuple(parameter.requires_grad for parameter in parameters))
        if kind not in self.recordings:
            self.recordings[kind] = None
            return self.step(images, labels, preprocess)
        recording = self.recordings[kind]
        if recording is None:
            recording = self.recordings[kind] = self._record(images, labels, preprocess)
        recording.images.copy_(images)
        recording.labels.copy_(labels)
        recording.graph.replay()
        for parameter, gradient in zip(parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.losses, recording.right

    def _record(self, images: Tensor, labels: Tensor, preprocess: Preprocess) -> Recording:
        images, labels = images.clone(), labels.clone()
        self.step.clear_gradients()  # so that they are made in the graph's memory
        graph = torch.cuda.CUDAGraph()
        # Other threads (tracking) may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._shared_pool(), capture_error_mode="thread_local"):
            losses, right = self.step(images, labels, preprocess)
        gradients = [parameter.grad for parameter in self.step.model.parameters()]
        return Recording(
            graph=graph, images=images, labels=labels, losses=losses, right=right, gradients=gradients
        )

    def _shared_pool(self) -> Any:
        """The memory of the first graph, for all: no two of them are replayed at once."""
        return next((one.graph.pool() for one in self.recordings.values() if one is not None), None)


def recorded(step: Step, *, asked: bool) -> Step | RecordedStep:
    """`step` as its plan wants it taken. One that draws at random (dropout) draws anew each time: it is not recorded.

    Raises ConfigError where graphs are `asked` for all the same.
    """
    if not step.compute.cuda_graphs:
        return step
    if not step.draws:
        return RecordedStep(step)
    if asked:
        raise ConfigError(
            "params.yaml: train.cuda_graphs is true, but this network draws at random (dropout), which a recorded step "
            "cannot. Use auto or false."
        )
    logger.warning("No CUDA graphs after all: this network draws at random (dropout).")
    return step
