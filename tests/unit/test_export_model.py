import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cifarflow import files
from cifarflow.config.schema import ExportConfig
from cifarflow.data.packed import DatasetInfo, Split, read_split, write_dataset, write_split
from cifarflow.errors import CheckpointError, ExportParityError, MissingInputError
from cifarflow.export import run
from cifarflow.export.graph import ExportedClassifier, write_onnx
from cifarflow.export.parity import ParityReport, compare, require_parity
from cifarflow.export.run import export_model
from cifarflow.inference.predictor import Predictor
from cifarflow.models import create_model
from cifarflow.models.bundle import ModelDescription
from cifarflow.workspace import Workspace

CLASSES = ("bird", "cat", "dog")
CONFIG = ExportConfig(
    opset=20, max_probability_difference=1e-4, min_agreement=1.0, check_batch_sizes=(1, 7, 64)
)
DESCRIPTION = ModelDescription(
    architecture="tudui",
    options={"activation": "none", "batch_norm": False, "hidden": 8},
    classes=CLASSES,
    image_size=32,
    mean=(0.49, 0.48, 0.45),
    std=(0.25, 0.24, 0.26),
    run_key="cd" * 32,
)
TEST = Split(
    images=np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8),
    labels=np.arange(30) % 3,
)
DATASET = DatasetInfo(
    source="shapes",
    classes=CLASSES,
    image_size=32,
    mean=DESCRIPTION.mean,
    std=DESCRIPTION.std,
    counts={"train": {"bird": 1200, "cat": 1, "dog": 0}, "test": {"bird": 10, "cat": 10, "dog": 10}},
    digests={"train": "1" * 64, "test": TEST.digest()},
    validation_indices_digest=None,
)
REPORT = ParityReport(
    max_probability_difference=1e-6,
    agreement=1.0,
    pytorch_accuracy=0.9,
    onnx_accuracy=0.9,
    difference_by_batch_size={1: 1e-6, 64: 1e-6},
    resized_difference=1e-6,
)


def make_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return create_model("tudui", num_classes=3, image_size=32, **DESCRIPTION.options).eval()


def make_workspace(root: Path) -> Workspace:
    workspace = Workspace.at(root, {})
    write_split(workspace.split("test"), TEST)
    write_dataset(workspace.dataset, DATASET)
    return workspace


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, Any]]:
    """A workspace after one export, and its metrics; tests only read it."""
    workspace = make_workspace(tmp_path_factory.mktemp("exported"))
    return workspace, export_model(make_model(), DESCRIPTION, DATASET, CONFIG, workspace)


def test_metrics_show_agreement_accuracy_and_latency(exported: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, metrics = exported
    assert metrics["max_probability_difference"] < 1e-5
    assert metrics["agreement"] == 1
    assert metrics["accuracy_onnx"] == metrics["accuracy_pytorch"]
    assert set(metrics["difference_by_batch_size"]) == {"1", "7", "64"}
    assert metrics["difference_resized"] < 1e-5
    assert metrics["model_bytes"] == workspace.onnx_model.stat().st_size
    assert metrics["latency_ms_batch_1"] > 0 < metrics["latency_ms_batch_64"]
    json.dumps(metrics, allow_nan=False)


def test_manifest_lists_the_other_files_with_their_digests(
    exported: tuple[Workspace, dict[str, Any]],
) -> None:
    folder = exported[0].export
    manifest = files.read_json(folder / "manifest.json")
    assert {path.name for path in folder.iterdir()} == {*manifest["files"], "manifest.json"}
    for name, facts in manifest["files"].items():
        assert facts == {
            "bytes": (folder / name).stat().st_size,
            "sha256": files.sha256_of_file(folder / name),
        }
    assert (manifest["run_key"], manifest["opset"]) == (DESCRIPTION.run_key, 20)


def test_card_tells_model_data_use_and_figures(exported: tuple[Workspace, dict[str, Any]]) -> None:
    card = (exported[0].export / "MODEL_CARD.md").read_text(encoding="utf-8")
    for fact in (
        DESCRIPTION.run_key,
        "bird, cat, dog",
        "shapes",
        "1,201",
        TEST.digest(),
        "uv run cifarflow predict",
        "100.0000%",
    ):
        assert fact in card


def test_the_snippet_of_the_card_works(
    exported: tuple[Workspace, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    workspace = exported[0]
    snippet = (
        (workspace.export / "MODEL_CARD.md")
        .read_text(encoding="utf-8")
        .split("```python\n")[1]
        .split("```")[0]
    )
    shutil.copy(workspace.onnx_model, tmp_path)
    from PIL import Image

    Image.new("RGB", (50, 40), "teal").save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "MODEL_CARD.md", "exec"), {})
    best = Predictor(workspace.onnx_model).classify(tmp_path / "cat.jpg", top=1)[0]
    assert capsys.readouterr().out.startswith(best.label)


def test_a_second_export_gives_the_same_files(
    exported: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    workspace = make_workspace(tmp_path)
    export_model(make_model(), DESCRIPTION, DATASET, CONFIG, workspace)
    for path in exported[0].export.iterdir():
        assert (workspace.export / path.name).read_bytes() == path.read_bytes()


def test_a_graph_that_computes_something_else_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path)
    workspace.export.mkdir(parents=True)
    for name in ("model.onnx", "manifest.json", "MODEL_CARD.md"):
        (workspace.export / name).write_text("of an older model")

    def write_spoilt(model: nn.Module, *rest: Any, **options: Any) -> None:
        spoilt = copy.deepcopy(model)
        with torch.no_grad():
            next(spoilt.parameters()).mul_(1.5)
        write_onnx(spoilt, *rest, **options)

    monkeypatch.setattr(run, "write_onnx", write_spoilt)
    with pytest.raises(ExportParityError) as caught:
        export_model(make_model(), DESCRIPTION, DATASET, CONFIG, workspace)
    assert list(workspace.export.iterdir()) == []
    for part in (
        "limit 0.0001",
        "export.max_probability_difference",
        "export.min_agreement",
        "by batch size: 1:",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"max_probability_difference": 0.1},
        {"max_probability_difference": float("nan")},
        {"difference_by_batch_size": {1: 0.0, 64: 0.1}},
        {"difference_by_batch_size": {1: 0.0, 64: float("nan")}},
        {"resized_difference": 0.1},
        {"agreement": 0.99},
    ],
    ids=str,
)
def test_the_gate_refuses_each_kind_of_disagreement(spoilt: dict[str, Any]) -> None:
    require_parity(REPORT, CONFIG)
    with pytest.raises(ExportParityError):
        require_parity(replace(REPORT, **spoilt), CONFIG)


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    with pytest.raises(CheckpointError, match="trained on other data"):
        export_model(make_model(), replace(DESCRIPTION, classes=("a", "b", "c")), DATASET, CONFIG, workspace)


def test_a_missing_test_split_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="dvc repro prepare"):
        export_model(make_model(), DESCRIPTION, DATASET, CONFIG, Workspace.at(tmp_path, {}))


class WrongOnce(Predictor):
    """Says what the exported file says, but for pictures that `is_wrong` names."""

    def __init__(self, path: Path, is_wrong: Callable[[np.ndarray], bool]) -> None:
        super().__init__(path)
        self.is_wrong = is_wrong

    def predict(self, images: np.ndarray) -> np.ndarray:
        found = super().predict(images)
        return np.roll(found, 1, axis=1) if self.is_wrong(images) else found


@pytest.mark.parametrize(
    ("is_wrong", "leg"),
    [
        (lambda images: len(images) == 7 and images.shape[1] == 32, "batch of 7"),
        (lambda images: images.shape[1] != 32, "other sizes"),
        (lambda images: len(images) == 30 and images.shape[1] == 32, "whole split"),
    ],
    ids=["batch of 7", "other sizes", "whole split"],
)
def test_each_comparison_looks_for_itself(
    exported: tuple[Workspace, dict[str, Any]], is_wrong: Callable[[np.ndarray], bool], leg: str
) -> None:
    workspace = exported[0]
    classifier = ExportedClassifier(make_model(), DESCRIPTION).eval()
    report = compare(
        classifier,
        WrongOnce(workspace.onnx_model, is_wrong),
        read_split(workspace.split("test")),
        batch_sizes=(1, 7),
    )
    differences = {
        "whole split": report.max_probability_difference,
        "batch of 7": report.difference_by_batch_size[7],
        "other sizes": report.resized_difference,
    }
    assert {name for name, difference in differences.items() if difference > 1e-4} == {leg}
    assert report.difference_by_batch_size[1] < 1e-4
