"""evaluate: open the test split, the only time, and say how good the model is on it."""

import sys

import start  # noqa: F401 - first: it says where cifarflow is

from cifarflow import files, stage
from cifarflow.config import flatten, load_config
from cifarflow.data.packed import read_dataset, read_split
from cifarflow.evaluation.evaluate import evaluate, views_precision
from cifarflow.evaluation.report import write_report
from cifarflow.models.bundle import load_model
from cifarflow.provenance import compute_tags, tracked_stage
from cifarflow.workspace import Workspace


def main() -> None:
    workspace = Workspace.here()
    config = load_config(workspace.params)
    model, description = load_model(workspace.model_weights, workspace.model_description)
    # DVC starts this stage once it holds the model: the states on the way to it are needed no longer.
    files.remove_folder(workspace.all_checkpoints, description.run_key)
    dataset = read_dataset(workspace.dataset)
    precision = {"views_precision": views_precision(config.evaluate)}
    tags = compute_tags(precision)
    with tracked_stage(
        "evaluate", config, workspace, run_key=description.run_key, dataset=dataset, tags=tags
    ) as tracker:
        test = read_split(workspace.split("test"), digest=dataset.digests.get("test"))
        result = evaluate(model, description, test, config.evaluate)
        metrics, plots = write_report(result, workspace.plots)
        files.write_json(workspace.metrics("evaluation"), {**metrics, **precision})
        tracker.metrics({f"test_{name}": value for name, value in flatten(metrics)}, step=0)
        for plot in plots:
            tracker.artifact(plot, folder="plots")
    print(
        f"evaluate: {len(result.labels):,} test pictures, accuracy {metrics['accuracy']:.4f}, "
        f"with test-time augmentation {metrics['accuracy_tta']:.4f} (views in {precision['views_precision']})"
    )


if __name__ == "__main__":
    sys.exit(stage.run("evaluate", main))
