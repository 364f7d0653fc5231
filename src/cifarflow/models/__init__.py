"""Architectures by name: one file each, one import line here."""

from torch import nn

from cifarflow.models import resnet, speednet, tudui, vgg
from cifarflow.models.registry import MODELS

__all__ = ["MODELS", "create_model", "resnet", "speednet", "tudui", "vgg"]


def create_model(name: str, *, num_classes: int, image_size: int, **options: object) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator (the caller seeds it).

    Raises UnknownNameError.
    """
    builder = MODELS.get(name, where="params.yaml: model.name")
    return builder(num_classes=num_classes, image_size=image_size, **options)
