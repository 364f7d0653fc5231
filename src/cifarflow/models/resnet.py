"""ResNet-18 in its CIFAR form."""

from torch import nn

from cifarflow.models.registry import MODELS


@MODELS.register("resnet18")
def resnet18(*, num_classes: int, image_size: int) -> nn.Module:
    """torchvision's ResNet-18 (He et al. 2016, arXiv:1512.03385) for small pictures.

    The first 7x7 convolution of stride 2 and the max-pool, made for 224 pixels, would leave a 32-pixel picture only
    8 pixels wide; a 3x3 convolution of stride 1 takes their place, as in section 4.2 of that paper.
    """
    import torchvision  # here: it takes a second, which a stage with another network need not wait

    network = torchvision.models.resnet18(weights=None, num_classes=num_classes)
    if image_size <= 64:
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        network.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network
