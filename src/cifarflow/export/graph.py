"""The network, its preprocessing and the softmax as one ONNX graph that takes stored bytes."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from cifarflow import files
from cifarflow.inference.metadata import INPUT, OUTPUT, ModelMetadata
from cifarflow.models.bundle import ModelDescription
from cifarflow.models.preprocess import Preprocess

PRODUCER = "cifarflow"
EXAMPLE_BATCH = 2  # with 1, an exporter may take the size of the batch for a constant


class ExportedClassifier(nn.Module):
    """uint8 `[N, H, W, 3]` of any size in RGB -> probabilities, float32 `[N, classes]`.

    The resize is `F.interpolate(mode="bilinear", antialias=True)`, ONNX's Resize with `antialias=1`:
    onnxruntime computes the same to 2e-6 at every size tried, and nothing at all changes at equal size.
    """

    def __init__(self, model: nn.Module, description: ModelDescription) -> None:
        super().__init__()
        self.preprocess = Preprocess(
            mean=description.mean,
            std=description.std,
            image_size=description.image_size,
            always_resizes=True,
        )
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.preprocess(images)).softmax(dim=1)


def write_onnx(model: nn.Module, description: ModelDescription, path: Path, *, opset: int) -> None:
    """Write `model` (in evaluation mode, float32, on the CPU) as one file; equal weights give equal bytes."""
    program = _trace(ExportedClassifier(model, description).eval(), description.image_size, opset=opset)
    program = without_traces(program)
    metadata = ModelMetadata(
        classes=description.classes,
        image_size=description.image_size,
        architecture=description.architecture,
        run_key=description.run_key,
    )
    onnx.helper.set_model_props(program, metadata.to_properties())
    onnx.checker.check_model(program, full_check=True)
    files.write_bytes(path, program.SerializeToString(deterministic=True))


def _trace(classifier: ExportedClassifier, image_size: int, *, opset: int) -> onnx.ModelProto:
    # Two sides that differ from each other and from image_size, so that none of them is taken for a constant.
    example = torch.zeros(EXAMPLE_BATCH, image_size + 8, image_size + 16, 3, dtype=torch.uint8)
    # Without a file name the program stays in memory, weights included: no second file with external data.
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            classifier,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch", 1: "height", 2: "width"},),
            verbose=False,
        )
    if program is None:
        raise AssertionError("torch.onnx.export(dynamo=True) gives a program")
    return program.model_proto


def without_traces(program: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without what names this machine: source paths, stack traces, the version of the exporter."""
    clean = onnx.ModelProto()
    clean.CopyFrom(program)
    clean.producer_name, clean.producer_version, clean.doc_string = PRODUCER, "", ""
    del clean.metadata_props[:]
    graph = clean.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    return clean


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own warnings and log lines, which a user can do nothing about, off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
