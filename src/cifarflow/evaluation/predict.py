"""What a network says about a split of pictures."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """What is averaged with the pictures as they are: mirrored ones, and shifted by some pixels unless by 0."""

    flip: bool
    shift_pixels: int
    in_bf16: bool = False
    """Instead of the precision of the weights, in which the pictures as they are stay."""


@torch.inference_mode()
def predict_logits(model: nn.Module, images: Tensor, *, preprocess: nn.Module, batch_size: int) -> Tensor:
    """Logits float32 `[N, C]` of uint8 `images` `[N, H, W, 3]`.

    The caller puts the model into evaluation mode. Batches go through `preprocess`, which also sets the size.
    """
    return torch.cat([model(preprocess(batch)).float() for batch in images.split(batch_size)])


@torch.inference_mode()
def predict_views(
    model: nn.Module, images: Tensor, *, preprocess: nn.Module, batch_size: int, views: Views
) -> tuple[Tensor, Tensor]:
    """As `predict_logits`, and beside it the average over the pictures as they are and the `views` of them.

    Half the weight goes to the pictures in their place, half to the shifted ones (Jordan 2024, arXiv:2404.00498).
    """
    plain, averaged = [], []
    for batch in images.split(batch_size):
        pixels = preprocess(batch)
        plain.append(model(pixels).float())
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=views.in_bf16):
            averaged.append(_average(model, pixels, plain[-1], views))
    return torch.cat(plain), torch.cat(averaged)


def _average(model: nn.Module, pixels: Tensor, logits: Tensor, views: Views) -> Tensor:
    def with_mirrored(view: Tensor, logits: Tensor) -> Tensor:
        return (logits + model(view.flip(3)).float()) / 2 if views.flip else logits

    in_place = with_mirrored(pixels, logits)
    shifted = [with_mirrored(view, model(view).float()) for view in _shifts(pixels, reach=views.shift_pixels)]
    return (in_place + torch.stack(shifted).mean(0)) / 2 if shifted else in_place


def _shifts(pixels: Tensor, *, reach: int) -> Iterator[Tensor]:
    """The pictures moved by `reach` pixels towards two opposite corners, edges mirrored."""
    if not reach:
        return
    height, width = pixels.shape[2:]
    padded = F.pad(pixels, (reach,) * 4, mode="reflect")
    yield padded[:, :, :height, :width]
    yield padded[:, :, 2 * reach :, 2 * reach :]
