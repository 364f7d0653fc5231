"""export: the model as one ONNX file that needs nothing else, checked against PyTorch before it is named."""

import sys

import start  # noqa: F401 - first: it says where cifarflow is

from cifarflow import files, stage
from cifarflow.config import flatten, load_config
from cifarflow.data.packed import read_dataset
from cifarflow.export.run import export_model
from cifarflow.models.bundle import load_model
from cifarflow.provenance import tracked_stage
from cifarflow.workspace import Workspace


def main() -> None:
    workspace = Workspace.here()
    config = load_config(workspace.params)
    model, description = load_model(workspace.model_weights, workspace.model_description)
    dataset = read_dataset(workspace.dataset)
    with tracked_stage(
        "export", config, workspace, run_key=description.run_key, dataset=dataset, tags={}
    ) as tracker:
        metrics = export_model(model, description, dataset, config.export, workspace)
        files.write_json(workspace.metrics("export"), metrics)
        tracker.metrics({f"export_{name}": value for name, value in flatten(metrics)}, step=0)
        tracker.artifact(workspace.export / "MODEL_CARD.md", folder="export")
        tracker.onnx_model(
            workspace.onnx_model, image_size=description.image_size, classes=description.classes
        )
    print(
        f"export: {workspace.onnx_model.relative_to(workspace.root)}, {metrics['model_bytes']:,} bytes; "
        f"differs from PyTorch by {metrics['max_probability_difference']:.1e} at most"
    )


if __name__ == "__main__":
    sys.exit(stage.run("export", main))
