"""The export of a trained model: write, check, and only then give the file its name."""

from pathlib import Path
from typing import Any

from torch import nn

from cifarflow import files
from cifarflow.config.schema import ExportConfig
from cifarflow.data.packed import DatasetInfo, read_split
from cifarflow.errors import CheckpointError
from cifarflow.export.card import model_card
from cifarflow.export.graph import ExportedClassifier, write_onnx
from cifarflow.export.latency import median_milliseconds
from cifarflow.export.parity import compare, require_parity
from cifarflow.inference.predictor import Predictor
from cifarflow.models.bundle import ModelDescription
from cifarflow.workspace import Workspace

MODEL, CARD, MANIFEST = "model.onnx", "MODEL_CARD.md", "manifest.json"
UNCHECKED = "model.onnx.unchecked"


def export_model(
    model: nn.Module,
    description: ModelDescription,
    dataset: DatasetInfo,
    config: ExportConfig,
    workspace: Workspace,
) -> dict[str, Any]:
    """Turn a trained network (in evaluation mode, on the CPU) into models/export/, and give the metrics.

    The graph is written under another name, compared with PyTorch through the Predictor that users have, and
    renamed only when the two agree: a model.onnx is always one that passed. manifest.json is written last.
    Raises MissingInputError, CheckpointError, ExportParityError.
    """
    _require_same_classes(description, dataset, workspace)
    split = read_split(workspace.split("test"), digest=dataset.digests.get("test"))
    card, unchecked = workspace.export / CARD, workspace.export / UNCHECKED
    _remove_old(workspace.export)
    try:
        write_onnx(model, description, unchecked, opset=config.opset)
        predictor = Predictor(unchecked)
        classifier = ExportedClassifier(model, description).eval()
        report = compare(classifier, predictor, split, batch_sizes=config.check_batch_sizes)
        require_parity(report, config)
        unchecked.replace(workspace.onnx_model)
    finally:
        unchecked.unlink(missing_ok=True)
    files.write_text(card, model_card(description, dataset, report, config))
    _write_manifest(workspace.export, description, config)
    return {
        **report.metrics(),
        "model_bytes": workspace.onnx_model.stat().st_size,
        **median_milliseconds(predictor, description.image_size),
    }


def _require_same_classes(description: ModelDescription, dataset: DatasetInfo, workspace: Workspace) -> None:
    if dataset.classes != description.classes:
        raise CheckpointError(
            f"{workspace.model_description} names the classes {', '.join(description.classes)},"
            f" but {workspace.dataset} {', '.join(dataset.classes)}: the model was trained on other data."
            " Run `uv run dvc repro`."
        )


def _remove_old(folder: Path) -> None:
    """As DVC does before a stage, so that a failed export by hand leaves no file of an older model either."""
    for name in (MANIFEST, CARD, MODEL):
        (folder / name).unlink(missing_ok=True)


def _write_manifest(folder: Path, description: ModelDescription, config: ExportConfig) -> None:
    listed = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": files.sha256_of_file(folder / name)}
        for name in (MODEL, CARD)
    }
    manifest = {"files": listed, "run_key": description.run_key, "opset": config.opset}
    files.write_json(folder / MANIFEST, manifest)
