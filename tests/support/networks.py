"""Registered networks with the options of the default recipe, which no code repeats."""

from typing import Any

from torch import nn

from cifarflow.config import load_config
from cifarflow.models import create_model
from tests.support.small import PROJECT


def network(name: str, *, num_classes: int = 10, image_size: int = 32, **changes: Any) -> nn.Module:
    """The network `name`; `changes` are options of its own section of params.yaml."""
    default = load_config(PROJECT / "recipes" / "cifar94.yaml").model
    options = default.model_copy(update={"name": name}).options()
    return create_model(name, num_classes=num_classes, image_size=image_size, **{**options, **changes})
