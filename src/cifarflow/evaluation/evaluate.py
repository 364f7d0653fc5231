"""The evaluate stage as one call: from a model and the test split to what it is worth."""

import torch
from torch import nn

from cifarflow.config.schema import EvaluateConfig
from cifarflow.data.packed import Split
from cifarflow.evaluation.predict import predict_views
from cifarflow.evaluation.report import Evaluated
from cifarflow.models.bundle import ModelDescription
from cifarflow.models.preprocess import Preprocess


def evaluate(
    model: nn.Module, description: ModelDescription, split: Split, config: EvaluateConfig
) -> Evaluated:
    """Predict a split as it is and with test-time augmentation, in float32 on the CPU.

    That is the arithmetic of the exported file, so both have the same accuracy.
    """
    images = torch.from_numpy(split.images)
    preprocess = Preprocess(mean=description.mean, std=description.std, image_size=description.image_size)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    plain, averaged = predict_views(
        model,
        images,
        preprocess=preprocess,
        batch_size=config.batch_size,
        flip=config.flip,
        shift_pixels=config.shift_pixels,
    )
    return Evaluated(
        images=split.images,
        labels=torch.from_numpy(split.labels),
        logits=plain,
        averaged_logits=averaged,
        classes=description.classes,
    )
