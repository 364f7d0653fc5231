"""Predictions, metrics and figures, against their definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cifarflow.evaluation import metrics
from cifarflow.evaluation.predict import predict_logits, predict_views
from cifarflow.evaluation.report import Evaluated, write_report
from cifarflow.models.preprocess import Preprocess

CLASSES = ("ant", "bee", "with, comma")
LOGITS = torch.tensor([[3.0, 1, 0], [0, 2, 1], [1, 0, 2], [5, 4, 0]])
LABELS = torch.tensor([0, 1, 1, 1])


class LeftBrightness(nn.Module):
    """Two logits: the brightness of the left and of the right half."""

    def forward(self, pixels: Tensor) -> Tensor:
        half = pixels.shape[3] // 2
        return torch.stack([pixels[..., :half].mean((1, 2, 3)), pixels[..., half:].mean((1, 2, 3))], 1)


def raw_preprocess(size: int = 8) -> Preprocess:
    return Preprocess(mean=(0, 0, 0), std=(1, 1, 1), image_size=size)


def test_accuracy_counts_the_top_answers() -> None:
    assert metrics.accuracy(LOGITS, LABELS) == pytest.approx(0.5)
    assert metrics.accuracy(LOGITS, LABELS, top=2) == pytest.approx(0.75)
    assert metrics.accuracy(LOGITS, LABELS, top=5) == 1.0


def test_per_class_numbers_by_hand() -> None:
    rows = {row["class"]: row for row in metrics.per_class(np.array([0, 1, 2, 0]), LABELS.numpy(), CLASSES)}
    assert rows["ant"]["precision"] == pytest.approx(1 / 2)
    assert rows["ant"]["recall"] == pytest.approx(1)
    assert rows["bee"]["f1"] == pytest.approx(2 * (1 * 1 / 3) / (1 + 1 / 3))
    assert rows["with, comma"] == {"class": "with, comma", "precision": 0, "recall": 0, "f1": 0, "count": 0}


def test_test_time_augmentation_averages_both_sides_and_shifts() -> None:
    images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    images[:, :, :4] = 255
    plain = torch.tensor([[1.0, 0.0]])
    shifted = torch.tensor(
        [[(1 + 0.75) / 2, (0.25 + 0) / 2]]
    )  # to the left 5 of 8 columns are bright, to the right 3
    even = torch.tensor([[0.5, 0.5]])
    for flip, shift_pixels, expected in (
        (False, 0, plain),
        (True, 0, even),
        (False, 1, (plain + shifted) / 2),
        (True, 1, even),
    ):
        as_it_is, averaged = predict_views(
            LeftBrightness(),
            images,
            preprocess=raw_preprocess(),
            batch_size=2,
            flip=flip,
            shift_pixels=shift_pixels,
        )
        torch.testing.assert_close(as_it_is, plain)
        torch.testing.assert_close(averaged, expected)


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    images = torch.randint(0, 255, (7, 8, 8, 3), dtype=torch.uint8)
    results = [
        predict_logits(LeftBrightness(), images, preprocess=raw_preprocess(), batch_size=size)
        for size in (1, 3, 64)
    ]
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_preprocess_resizes_and_normalises() -> None:
    images = torch.full((2, 20, 12, 3), 51, dtype=torch.uint8)
    pixels = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.1), image_size=8)(images)
    expected = torch.tensor([0.2, 0.0, -1.0]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def report(folder: Path) -> dict:
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
    result = Evaluated(
        images=images, labels=LABELS, logits=LOGITS, averaged_logits=LOGITS * 2, classes=CLASSES
    )
    summary, paths = write_report(result, folder)
    assert all(path.is_file() for path in paths)
    return summary


def test_the_report_holds_every_number_and_plot(tmp_path: Path) -> None:
    summary = report(tmp_path)
    assert summary["accuracy"] == 0.5
    assert summary["per_class"]["bee"]["count"] == 3
    lines = (tmp_path / "confusion.csv").read_text().splitlines()
    assert lines == ["actual,predicted", "ant,ant", "bee,bee", 'bee,"with, comma"', "bee,ant"]
    for name in ("confusion.png", "per_class.png", "mistakes.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100
            assert np.asarray(picture.convert("L")).min() < 100, f"{name} is blank"


def test_equal_results_give_equal_bytes(tmp_path: Path) -> None:
    report(tmp_path / "a")
    report(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
