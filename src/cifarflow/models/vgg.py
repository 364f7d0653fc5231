"""VGG-16 of torchvision, adapted to another number of classes in the course's two ways."""

from typing import TYPE_CHECKING

from torch import nn

from cifarflow.errors import DownloadError
from cifarflow.models.registry import MODELS

if TYPE_CHECKING:
    from torchvision.models.vgg import VGG

IMAGENET_CLASSES = 1000
HIDDEN_UNITS = 4096


@MODELS.register("vgg16")
def vgg16(*, num_classes: int, image_size: int, head: str, pretrained: bool) -> nn.Module:
    """VGG-16 (Simonyan and Zisserman 2015, arXiv:1409.1556); any `image_size` of 32 or more, by its average pool.

    `head="replace"` puts a new last layer 4096 -> `num_classes`; `head="append"` keeps the 1000 ImageNet outputs and
    adds a layer 1000 -> `num_classes` behind them. Raises DownloadError when the pretrained weights cannot be had.
    """
    import torchvision  # here: it takes a second, which a stage with another network need not wait

    network = _pretrained() if pretrained else torchvision.models.vgg16(weights=None)
    if head == "append":
        network.classifier.add_module("add_linear", nn.Linear(IMAGENET_CLASSES, num_classes))
    else:
        network.classifier[-1] = nn.Linear(HIDDEN_UNITS, num_classes)
    return network


def _pretrained() -> "VGG":
    import torchvision

    weights = torchvision.models.VGG16_Weights.IMAGENET1K_V1
    try:
        return torchvision.models.vgg16(weights=weights)
    except (OSError, RuntimeError) as error:
        raise DownloadError(
            f"the ImageNet weights of vgg16 could not be loaded from {weights.url}: {error}. Check the network, "
            "put the file into TORCH_HOME/hub/checkpoints, or set model.vgg16.pretrained to false."
        ) from None
