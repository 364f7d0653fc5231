"""The evaluate stage as one call: from a model and the test split to what it is worth."""

import torch
from torch import nn

from cifarflow.compute import processor
from cifarflow.config.schema import EvaluateConfig
from cifarflow.data.packed import Split
from cifarflow.evaluation.predict import Views, predict_views
from cifarflow.evaluation.report import Evaluated
from cifarflow.models.bundle import ModelDescription
from cifarflow.models.preprocess import Preprocess


def evaluate(
    model: nn.Module, description: ModelDescription, split: Split, config: EvaluateConfig
) -> Evaluated:
    """Predict a split as it is and with test-time augmentation, on the CPU.

    As they are, pictures are seen in float32: the arithmetic of the exported file, so both have the same accuracy. The
    other views, five of six at the default, are only averaged, and may be in bf16.
    """
    images = torch.from_numpy(split.images)
    preprocess = Preprocess(mean=description.mean, std=description.std, image_size=description.image_size)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    plain, averaged = predict_views(
        model,
        images,
        preprocess=preprocess,
        batch_size=config.batch_size,
        views=Views(
            flip=config.flip,
            shift_pixels=config.shift_pixels,
            in_bf16=views_precision(config) == "bf16",
        ),
    )
    return Evaluated(
        images=split.images,
        labels=torch.from_numpy(split.labels),
        logits=plain,
        averaged_logits=averaged,
        classes=description.classes,
    )


def views_precision(config: EvaluateConfig) -> str:
    """fp32 or bf16; `auto` is bf16 where the processor has units for it, as in training."""
    if config.views_precision != "auto":
        return config.views_precision
    return "bf16" if processor.bf16_units() else "fp32"
