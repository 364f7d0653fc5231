"""VGG-16 of torchvision, adapted to another number of classes in the course's two ways."""

import hashlib
import socket
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor, nn

from cifarflow.errors import DataIntegrityError, DownloadError
from cifarflow.models.registry import MODELS

# Of torchvision's IMAGENET1K_V1, 528 MiB, which itself names the first eight digits, in the file's name.
WEIGHTS_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
IMAGENET_CLASSES = 1000
HIDDEN_UNITS = 4096
STALL_SECONDS = 30.0


@MODELS.register("vgg16")
def vgg16(*, num_classes: int, image_size: int, head: str, pretrained: bool) -> nn.Module:
    """VGG-16 (Simonyan and Zisserman 2015, arXiv:1409.1556); any `image_size` of 32 or more, by its average pool.

    `head="replace"` puts a new last layer 4096 -> `num_classes`; `head="append"` keeps the 1000 ImageNet outputs and
    adds a layer 1000 -> `num_classes` behind them. Raises DownloadError when the pretrained weights cannot be had, and
    DataIntegrityError when the file that holds them is another.
    """
    import torchvision  # here: it takes a second, which a stage with another network need not wait

    weights = _imagenet_weights() if pretrained else None
    network = torchvision.models.vgg16(weights=None, init_weights=weights is None)
    if weights is not None:
        network.load_state_dict(weights)
    if head == "append":
        network.classifier.add_module("add_linear", nn.Linear(IMAGENET_CLASSES, num_classes))
    else:
        network.classifier[-1] = nn.Linear(HIDDEN_UNITS, num_classes)
    return network


def _imagenet_weights() -> dict[str, Tensor]:
    """The weights from torchvision's own place for them; where they lack, they are downloaded to it.

    Not by torchvision's `weights=`: it unpickles whatever lies there, unchecked, and so would run its code.
    """
    url = _weights_url()
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        _download(url, path)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != WEIGHTS_SHA256:
            raise DataIntegrityError(
                f"{path} is not the file of ImageNet weights of vgg16: its SHA-256 is {digest}, expected "
                f"{WEIGHTS_SHA256}. Delete it, then run the same command again: it is downloaded anew."
            )
        stream.seek(0)
        return torch.load(stream, map_location="cpu", weights_only=True)


def _weights_url() -> str:
    import torchvision

    return torchvision.models.VGG16_Weights.IMAGENET1K_V1.url


def _download(url: str, path: Path) -> None:
    """Bring the weights from `url` to `path`, where they appear whole and with the known digest, or not at all."""
    usual = socket.getdefaulttimeout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(
            STALL_SECONDS
        )  # torch's own download would wait for a silent server for ever
        torch.hub.download_url_to_file(url, str(path), hash_prefix=WEIGHTS_SHA256)
    except (OSError, RuntimeError, ValueError, HTTPException) as error:  # the last two: a server's odd answer
        raise DownloadError(
            f"the ImageNet weights of vgg16 could not be loaded from {url}: {error}. Check the network, "
            f"put the file to {path}, or set model.vgg16.pretrained to false."
        ) from None
    finally:
        socket.setdefaulttimeout(usual)
