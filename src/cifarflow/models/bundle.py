"""A trained model on disk: weights without code (safetensors) and a description that rebuilds the network."""

import re
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from cifarflow import files
from cifarflow.errors import CheckpointError, DataIntegrityError, MissingInputError
from cifarflow.models import create_model

MAX_IMAGE_SIZE = 4096  # pixels; of the sizes that params.yaml allows, the largest is 512
RUN_KEY = re.compile("[0-9a-f]{64}")  # what provenance.train_key gives


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
    def from_json(cls, content: Any) -> "ModelDescription":
        """Raises KeyError (what lacks) or TypeError (what is wrong) when `content` is not a description."""
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, expected a mapping")
        lists = {name: tuple(content[name]) for name in ("classes", "mean", "std")}
        facts = cls(**{**content, **lists})
        facts._check()
        return facts

    def _check(self) -> None:
        if not isinstance(self.architecture, str) or not isinstance(self.options, dict):
            raise TypeError("`architecture` must be a name and `options` a mapping")
        if not self.classes or not all(isinstance(name, str) for name in self.classes):
            raise TypeError("`classes` must be a list of names")
        if type(self.image_size) is not int or not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise TypeError(f"`image_size` must be a whole number from 1 to {MAX_IMAGE_SIZE}")
        for name, channels in (("mean", self.mean), ("std", self.std)):
            if len(channels) != 3 or not all(type(value) is float and isfinite(value) for value in channels):
                raise TypeError(f"`{name}` must be three finite floats")
        # Folders are named by it, so it must not lead anywhere.
        if not isinstance(self.run_key, str) or not RUN_KEY.fullmatch(self.run_key):
            raise TypeError(
                f"`run_key` is {self.run_key!r:.80}, expected the 64 hex digits that train gave it"
            )


def save_model(model: nn.Module, description: ModelDescription, *, weights: Path, target: Path) -> None:
    """Write `weights` and then, last, the description to `target`: where it lies, the weights are whole."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    files.write_bytes(weights, safetensors.torch.save(tensors))
    files.write_json(target, asdict(description))


def read_description(path: Path) -> ModelDescription:
    """Raises MissingInputError, or DataIntegrityError when the file does not describe a model."""
    if not path.is_file():
        raise MissingInputError(path, made_by="train")
    content = files.read_json(path)
    try:
        return ModelDescription.from_json(content)
    except (KeyError, TypeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise DataIntegrityError(
            f"{path} is not a model's description: {what}. Run `uv run dvc checkout`, or `uv run dvc repro train`."
        ) from None


def load_model(weights: Path, description: Path) -> tuple[nn.Module, ModelDescription]:
    """The network in evaluation mode, float32 on the CPU, and its description.

    Raises what `read_description` raises, and CheckpointError when the weights are broken or of another network.
    """
    if not weights.is_file():
        raise MissingInputError(weights, made_by="train")
    facts = read_description(description)
    try:
        state = safetensors.torch.load_file(weights)
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"{weights} cannot be read: {error}. Run `uv run dvc checkout`.") from None
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
