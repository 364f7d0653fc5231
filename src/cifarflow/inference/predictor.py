"""An exported model, ready to name pictures: the ONNX file is all it needs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as faults  # pyright: ignore[reportAttributeAccessIssue]

from cifarflow.errors import CheckpointError, DataIntegrityError, MissingInputError, printable
from cifarflow.inference.metadata import INPUT, OUTPUT, ModelMetadata
from cifarflow.inference.pictures import fit_for_graph, read_picture

FAULTS = (
    faults.Fail,
    faults.InvalidArgument,
    faults.InvalidGraph,
    faults.InvalidProtobuf,
    faults.NotImplemented,
    faults.RuntimeException,
    UnicodeDecodeError,  # broken names in an error text of onnxruntime itself
)
MAX_BYTES = 600 << 20  # vgg16, the largest network here, has 512 MiB
MAX_TEXT = 500
MAKE_ANEW = "Run `uv run dvc checkout`, or `uv run dvc repro export`."
QUIET = 4  # onnxruntime's level for fatal errors alone: every lesser one comes back as an exception


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A class name and its probability in [0, 1]."""

    label: str
    probability: float


class Predictor:
    """Runs an exported model on the CPU; `metadata` holds its class names and where it came from."""

    def __init__(self, path: Path, *, memory_bytes: int | None = None) -> None:
        """Weights and intermediate results get `memory_bytes` at most, if given: a file may ask for any number.

        Raises MissingInputError, or CheckpointError when the file is broken or not made by `export`.
        """
        self.path = path
        self._session = _open_session(path, memory_bytes=memory_bytes)
        self.metadata = _read_metadata(self._session, path)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.metadata.classes

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Probabilities, float32 `[N, classes]`, of pictures, uint8 `[N, H, W, 3]` of any size in RGB.

        Raises DataIntegrityError when the array has another shape or type, CheckpointError when the model fails.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or 0 in images.shape[1:3]:
            found = f"{images.dtype} {list(images.shape)}"
            raise DataIntegrityError(f"pictures must be uint8 [N, H, W, 3] in RGB, got {found}")
        if len(images) == 0:
            return np.zeros((0, len(self.classes)), np.float32)
        try:
            (answer,) = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(images)})
        except FAULTS as error:
            raise CheckpointError(f"{_shown(self.path)} fails on a picture: {_one_line(error)}") from None
        probabilities = np.asarray(answer)
        if probabilities.shape != (len(images), len(self.classes)):
            found = f"{list(probabilities.shape)}, expected {[len(images), len(self.classes)]}"
            raise CheckpointError(f"{_shown(self.path)} gives probabilities of shape {found}. {MAKE_ANEW}")
        return probabilities

    def classify(self, picture: Path | bytes, *, top: int) -> list[Prediction]:
        """The `top` most probable classes of a picture file (or of its bytes), the likeliest first.

        Raises DataIntegrityError when it is not a picture, CheckpointError when the model fails on it.
        """
        name = str(picture) if isinstance(picture, Path) else "picture"
        pixels = fit_for_graph(read_picture(picture, name=name))
        (probabilities,) = self.predict(pixels[None])
        if not np.isfinite(probabilities).all():
            raise CheckpointError(f"{_shown(self.path)} gives numbers that are not finite. {MAKE_ANEW}")
        return self.rank(probabilities, top=top)

    def rank(self, probabilities: np.ndarray, *, top: int) -> list[Prediction]:
        """The `top` largest of one row of `predict`; equal ones in the order of the classes."""
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [
            Prediction(label=self.classes[index], probability=float(probabilities[index])) for index in order
        ]


def _open_session(path: Path, *, memory_bytes: int | None) -> onnxruntime.InferenceSession:
    """A session from the file's bytes: what is not in them is refused, so a model is always one file."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise MissingInputError(_shown(path), made_by="export") from None
    except IsADirectoryError:
        raise CheckpointError(f"{_shown(path)} is a folder, expected an .onnx file.") from None
    if len(content) > MAX_BYTES:
        raise CheckpointError(
            f"{_shown(path)} is larger than {MAX_BYTES >> 20} MiB, so no model of this pipeline."
        )
    options = onnxruntime.SessionOptions()
    if memory_bytes is not None:
        _register_allocator(memory_bytes)
        options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = QUIET
    # One format alone: otherwise the bytes may choose onnxruntime's own, which it reads with fewer checks.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Where weights outside of the file would be looked for: it is no folder, so that never succeeds.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path))
    try:
        # Without its fallback: a second try on the same processor, announced on stdout.
        return onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except FAULTS as error:
        raise CheckpointError(_explain(path, error)) from None


def _register_allocator(memory_bytes: int) -> None:
    """The allocator of all sessions of this process that ask for a shared one."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    unset = -1
    arena = onnxruntime.OrtArenaCfg(
        {
            "max_mem": memory_bytes,
            "arena_extend_strategy": 1,  # as much as is asked for; the default doubles
            "initial_chunk_size_bytes": unset,
            "max_dead_bytes_per_chunk": unset,
        }
    )
    onnxruntime.create_and_register_allocator(memory, arena)


def _explain(path: Path, error: Exception) -> str:
    text = _one_line(error)
    if "external data" in text.lower():
        return f"{_shown(path)} keeps weights in a second file. Export it as one file. ({text})"
    return f"{_shown(path)} is not a whole ONNX model: {text} {MAKE_ANEW}"


def _one_line(error: Exception) -> str:
    """The text, which may quote the file, shortened."""
    return printable(" ".join(str(error).split()))[:MAX_TEXT]


def _shown(path: Path) -> str:
    return printable(str(path))


def _read_metadata(session: onnxruntime.InferenceSession, path: Path) -> ModelMetadata:
    try:
        metadata = ModelMetadata.from_properties(session.get_modelmeta().custom_metadata_map)
        _check_signature(session, len(metadata.classes))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{_shown(path)} is an ONNX model, but not one of this pipeline: {_one_line(error)}."
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
