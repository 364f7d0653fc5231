"""A trained model on disk: weights without code (safetensors) and a description that rebuilds the network."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cifarflow import files
from cifarflow.errors import CheckpointError, MissingInputError
from cifarflow.models import create_model

MAX_IMAGE_SIZE = 4096  # pixels; of the sizes that params.yaml allows, the largest is 512


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDescription:
    """All that is needed to use the weights; `mean` and `std` are per channel, of pixels in [0, 1]."""

    architecture: str
    options: dict[str, Any]
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    run_key: str

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "ModelDescription":
        """Raises KeyError or TypeError when `content` is not a description."""
        lists = {name: tuple(content[name]) for name in ("classes", "mean", "std")}
        facts = cls(**{**content, **lists})
        if not isinstance(facts.architecture, str) or not isinstance(facts.options, dict):
            raise TypeError("`architecture` must be a name and `options` a mapping")
        if type(facts.image_size) is not int or not 1 <= facts.image_size <= MAX_IMAGE_SIZE:
            raise TypeError(f"`image_size` must be a whole number from 1 to {MAX_IMAGE_SIZE}")
        return facts


def save_model(model: nn.Module, description: ModelDescription, *, weights: Path, target: Path) -> None:
    """Write `weights` and then, last, the description to `target`: where it lies, the weights are whole."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    files.write_bytes(weights, safetensors.torch.save(tensors))
    files.write_json(target, asdict(description))


def load_model(weights: Path, description: Path) -> tuple[nn.Module, ModelDescription]:
    """The network in evaluation mode, float32 on the CPU, and its description.

    Raises MissingInputError, or CheckpointError when the files are broken or do not belong together.
    """
    for path in (weights, description):
        if not path.is_file():
            raise MissingInputError(path, made_by="train")
    try:
        facts = ModelDescription.from_json(files.read_json(description))
        state = safetensors.torch.load_file(weights)
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{weights} and {description} cannot be read: {error}. Run `uv run dvc checkout`."
        ) from None
    try:
        # Shapes only: nothing is drawn or allocated before the weights are known to fit.
        with torch.device("meta"), _Undrawn():
            model = create_model(
                facts.architecture,
                num_classes=len(facts.classes),
                image_size=facts.image_size,
                **_offline(facts.options),
            )
        model.load_state_dict(state, assign=True)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{weights} does not fit the network in {description}: {error}") from None
    return model.eval(), facts


class _Undrawn(TorchFunctionMode):
    """Leaves out the drawing of weights: on the meta device it has no effect but to load torch's compiler, a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _offline(options: dict[str, Any]) -> dict[str, Any]:
    """The options without a fetch of starting weights, which the stored ones replace at once."""
    return {**options, "pretrained": False} if "pretrained" in options else options
