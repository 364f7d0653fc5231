"""What a network says about a split of pictures."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    images: Tensor,
    *,
    preprocess: nn.Module,
    batch_size: int,
    flip: bool = False,
    shift_pixels: int = 0,
) -> Tensor:
    """Logits float32 `[N, C]` of uint8 `images` `[N, H, W, 3]`, averaged over views when `flip` or `shift_pixels` ask.

    The caller puts the model into evaluation mode. Batches go through `preprocess`, which also sets the size.
    """
    batches = []
    for batch in images.split(batch_size):
        pixels = preprocess(batch)
        batches.append(_averaged(model, pixels, flip=flip, shift_pixels=shift_pixels))
    return torch.cat(batches)


def _averaged(model: nn.Module, pixels: Tensor, *, flip: bool, shift_pixels: int) -> Tensor:
    """Half the weight to the picture as it is, half to its shifted copies (as Jordan 2024, arXiv:2404.00498)."""
    logits = _both_sides(model, pixels, flip=flip)
    shifted = [_both_sides(model, view, flip=flip) for view in _shifts(pixels, shift_pixels)]
    return (logits + torch.stack(shifted).mean(0)) / 2 if shifted else logits


def _both_sides(model: nn.Module, pixels: Tensor, *, flip: bool) -> Tensor:
    logits = model(pixels).float()
    return (logits + model(pixels.flip(3)).float()) / 2 if flip else logits


def _shifts(pixels: Tensor, reach: int) -> Iterator[Tensor]:
    """The pictures moved by `reach` pixels towards two opposite corners, edges mirrored."""
    if not reach:
        return
    height, width = pixels.shape[2:]
    padded = F.pad(pixels, (reach,) * 4, mode="reflect")
    yield padded[:, :, :height, :width]
    yield padded[:, :, 2 * reach :, 2 * reach :]
