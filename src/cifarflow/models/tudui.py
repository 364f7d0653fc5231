"""The network of the course: three convolutions with pooling, then one or two linear layers."""

from itertools import pairwise

from torch import nn

from cifarflow.models.registry import MODELS

ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "sigmoid": nn.Sigmoid}
CHANNELS = (3, 32, 32, 64)


@MODELS.register("tudui")
def tudui(
    *,
    num_classes: int,
    image_size: int,
    activation: str,
    batch_norm: bool,
    hidden: int | None,
) -> nn.Sequential:
    """Conv 5x5 of 32, 32, 64 channels, each with a 2x2 max-pool; at 32 pixels 1024 -> `hidden` -> `num_classes`.

    `hidden=None` leaves the middle layer out (the course's one-linear-layer variant). The course's own setting has no
    activation at all, which makes every layer but the pooling linear: compare `activation=relu` and see.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(CHANNELS):
        layers.append(nn.Conv2d(inputs, outputs, kernel_size=5, padding=2))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers += [ACTIVATIONS[activation](), nn.MaxPool2d(2)]
    features = CHANNELS[-1] * (image_size // 8) ** 2
    layers.append(nn.Flatten())
    if hidden is None:
        layers.append(nn.Linear(features, num_classes))
    else:
        layers += [nn.Linear(features, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, num_classes)]
    return nn.Sequential(*(layer for layer in layers if not isinstance(layer, nn.Identity)))
