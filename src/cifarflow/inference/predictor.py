"""An exported model, ready to name pictures: the ONNX file is all it needs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as faults  # pyright: ignore[reportAttributeAccessIssue]

from cifarflow.errors import CheckpointError, DataIntegrityError, MissingInputError
from cifarflow.inference.metadata import INPUT, OUTPUT, ModelMetadata
from cifarflow.inference.pictures import read_picture

LOAD_FAULTS = (
    faults.Fail,
    faults.InvalidArgument,
    faults.InvalidGraph,
    faults.InvalidProtobuf,
    faults.NotImplemented,
    faults.RuntimeException,
    UnicodeDecodeError,  # broken names in an error text of onnxruntime itself
)
QUIET = 4  # onnxruntime's level for fatal errors alone: every lesser one comes back as an exception


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A class name and its probability in [0, 1]."""

    label: str
    probability: float


class Predictor:
    """Runs an exported model on the CPU; `metadata` holds its class names and where it came from."""

    def __init__(self, path: Path) -> None:
        """Raises MissingInputError, or CheckpointError when the file is broken or not made by `export`."""
        self.path = path
        self._session = _open_session(path)
        self.metadata = _read_metadata(self._session, path)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.metadata.classes

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Probabilities, float32 `[N, classes]`, of pictures, uint8 `[N, H, W, 3]` of any size in RGB.

        Raises DataIntegrityError when the array has another shape or type.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or 0 in images.shape[1:3]:
            found = f"{images.dtype} {list(images.shape)}"
            raise DataIntegrityError(f"pictures must be uint8 [N, H, W, 3] in RGB, got {found}")
        if len(images) == 0:
            return np.zeros((0, len(self.classes)), np.float32)
        (probabilities,) = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(images)})
        return np.asarray(probabilities)

    def classify(self, picture: Path | bytes, *, top: int) -> list[Prediction]:
        """The `top` most probable classes of a picture file (or of its bytes), the likeliest first.

        Raises DataIntegrityError when it is not a picture.
        """
        name = str(picture) if isinstance(picture, Path) else "picture"
        return self.rank(self.predict(read_picture(picture, name=name)[None])[0], top=top)

    def rank(self, probabilities: np.ndarray, *, top: int) -> list[Prediction]:
        """The `top` largest of one row of `predict`; equal ones in the order of the classes."""
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [
            Prediction(label=self.classes[index], probability=float(probabilities[index])) for index in order
        ]


def _open_session(path: Path) -> onnxruntime.InferenceSession:
    """A session from the file's bytes: what is not in them is refused, so a model is always one file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingInputError(path, made_by="export") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, expected an .onnx file.") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    # Where weights outside of the file would be looked for: it is no folder, so that never succeeds.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path))
    try:
        # Without its fallback: a second try on the same processor, announced on stdout.
        return onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except LOAD_FAULTS as error:
        raise CheckpointError(_explain(path, error)) from None


def _explain(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "external data" in text.lower():
        return f"{path} keeps weights in a second file. Export it as one file. ({text})"
    return (
        f"{path} is not a whole ONNX model: {text} Run `uv run dvc checkout`, or `uv run dvc repro export`."
    )


def _read_metadata(session: onnxruntime.InferenceSession, path: Path) -> ModelMetadata:
    try:
        metadata = ModelMetadata.from_properties(session.get_modelmeta().custom_metadata_map)
        _check_signature(session, len(metadata.classes))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is an ONNX model, but not one of this pipeline: {error}."
            " Use the file made by `uv run dvc repro export`."
        ) from None
    return metadata


def _check_signature(session: onnxruntime.InferenceSession, num_classes: int) -> None:
    """Raises ValueError when inputs and outputs are not those of the export."""
    inputs = [(node.name, node.type, len(node.shape)) for node in session.get_inputs()]
    outputs = [(node.name, node.type, node.shape[1:]) for node in session.get_outputs()]
    if inputs != [(INPUT, "tensor(uint8)", 4)]:
        raise ValueError(f"its inputs are {inputs}, expected {INPUT}, uint8 of 4 dimensions")
    if outputs != [(OUTPUT, "tensor(float)", [num_classes])]:
        raise ValueError(f"its outputs are {outputs}, expected {OUTPUT}, float32 [batch, {num_classes}]")
