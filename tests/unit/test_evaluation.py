"""Predictions, metrics and figures, against their definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cifarflow.compute import processor
from cifarflow.evaluation import metrics
from cifarflow.evaluation.evaluate import views_precision
from cifarflow.evaluation.figures import CHINESE_FONTS, INSTALLED
from cifarflow.evaluation.predict import Views, predict_logits, predict_views
from cifarflow.evaluation.report import Evaluated, write_report
from cifarflow.models.preprocess import Preprocess
from tests.support.small import small_config

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
            views=Views(flip=flip, shift_pixels=shift_pixels),
        )
        torch.testing.assert_close(as_it_is, plain)
        torch.testing.assert_close(averaged, expected)


class Layer(nn.Module):
    """A layer's outputs, and the type of numbers that each call was made in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.types = nn.Linear(8 * 8 * 3, 2), []

    def forward(self, pixels: Tensor) -> Tensor:
        logits = self.layer(pixels.flatten(1))
        self.types.append(logits.dtype)
        return logits


@pytest.mark.parametrize("in_bf16", [False, True])
def test_only_the_added_views_are_in_bf16(in_bf16: bool) -> None:
    model, images = Layer(), torch.randint(0, 255, (5, 8, 8, 3), dtype=torch.uint8)
    asked, exact = (
        predict_views(
            model,
            images,
            preprocess=raw_preprocess(),
            batch_size=5,
            views=Views(flip=True, shift_pixels=1, in_bf16=bf16),
        )
        for bf16 in (in_bf16, False)
    )
    assert model.types[:6] == [torch.float32, *[torch.bfloat16 if in_bf16 else torch.float32] * 5]
    assert torch.equal(asked[0], exact[0]), "the pictures as they are do not depend on it"
    assert asked[1].dtype == torch.float32
    torch.testing.assert_close(asked[1], exact[1], atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("asked", "units", "chosen"),
    [
        ("auto", ["amx_bf16"], "bf16"),
        ("auto", [], "fp32"),
        ("fp32", ["amx_bf16"], "fp32"),
        ("bf16", [], "bf16"),
    ],
)
def test_the_precision_of_views_is_as_asked_or_by_the_processor(
    monkeypatch: pytest.MonkeyPatch, asked: str, units: list[str], chosen: str
) -> None:
    monkeypatch.setattr(processor, "bf16_units", lambda: units)
    assert views_precision(small_config(evaluate__views_precision=asked).evaluate) == chosen


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


@pytest.mark.parametrize("classes", [("$$", "$_$", "\u732b"), tuple(str(number) for number in range(300))])
def test_figures_take_any_names_of_classes_and_many(
    tmp_path: Path, classes: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    count = len(classes)
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(count, count, generator=generator), torch.arange(count)
    images = np.zeros((count, 8, 8, 3), dtype=np.uint8)
    result = Evaluated(images=images, labels=labels, logits=logits, averaged_logits=logits, classes=classes)
    write_report(result, tmp_path)
    with Image.open(tmp_path / "confusion.png") as picture:
        assert max(picture.size) <= 4400
    assert len(caplog.records) == (classes[0] == "$$" and not set(CHINESE_FONTS) & INSTALLED)
