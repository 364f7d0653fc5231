"""What a network says about a split of pictures."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.inference_mode()
def predict_logits(model: nn.Module, images: Tensor, *, preprocess: nn.Module, batch_size: int) -> Tensor:
    """Logits float32 `[N, C]` of uint8 `images` `[N, H, W, 3]`.

    The caller puts the model into evaluation mode. Batches go through `preprocess`, which also sets the size.
    """
    return torch.cat([model(preprocess(batch)).float() for batch in images.split(batch_size)])


@torch.inference_mode()
def predict_views(
    model: nn.Module,
    images: Tensor,
    *,
    preprocess: nn.Module,
    batch_size: int,
    flip: bool,
    shift_pixels: int,
) -> tuple[Tensor, Tensor]:
    """As `predict_logits`, and beside it the average over mirrored and shifted views where `flip`, `shift_pixels` ask.

    Half the weight goes to the pictures in their place, half to the shifted ones (Jordan 2024, arXiv:2404.00498).
    """
    plain, averaged = [], []
    for batch in images.split(batch_size):
        pixels = preprocess(batch)
        plain.append(model(pixels).float())
        in_place = _with_mirrored(model, pixels, plain[-1]) if flip else plain[-1]
        averaged.append(_with_shifted(model, pixels, in_place, flip=flip, reach=shift_pixels))
    return torch.cat(plain), torch.cat(averaged)


def _with_mirrored(model: nn.Module, pixels: Tensor, logits: Tensor) -> Tensor:
    return (logits + model(pixels.flip(3)).float()) / 2


def _with_shifted(model: nn.Module, pixels: Tensor, in_place: Tensor, *, flip: bool, reach: int) -> Tensor:
    shifted = []
    for view in _shifts(pixels, reach):
        logits = model(view).float()
        shifted.append(_with_mirrored(model, view, logits) if flip else logits)
    return (in_place + torch.stack(shifted).mean(0)) / 2 if shifted else in_place


def _shifts(pixels: Tensor, reach: int) -> Iterator[Tensor]:
    """The pictures moved by `reach` pixels towards two opposite corners, edges mirrored."""
    if not reach:
        return
    height, width = pixels.shape[2:]
    padded = F.pad(pixels, (reach,) * 4, mode="reflect")
    yield padded[:, :, :height, :width]
    yield padded[:, :, 2 * reach :, 2 * reach :]
