"""train: fit the network to the training split, from the last checkpoint where there is one."""

import sys

import checkout  # noqa: F401 - first: it says where cifarflow is

from cifarflow import errors, files
from cifarflow.config import load_config
from cifarflow.provenance import compute_tags, tracked_stage, train_key
from cifarflow.training.checkpoint import Checkpoints
from cifarflow.training.hardware import plan_compute
from cifarflow.training.task import Task
from cifarflow.training.train import save_trained, train
from cifarflow.workspace import Workspace


def main() -> None:
    workspace = Workspace.here()
    config = load_config(workspace.params)
    compute = plan_compute(config.train)
    print("train:", "; ".join(compute.reasons), flush=True)
    task = Task.load(config.train, seed=config.seed, compute=compute, workspace=workspace)
    facts = compute.describe()
    run_key = train_key(config, workspace, data=task.dataset.digests, compute=facts)
    tags = compute_tags(facts)
    with tracked_stage(
        "train", config, workspace, run_key=run_key, dataset=task.dataset, tags=tags
    ) as tracker:
        fit = train(
            task,
            config.model,
            seed=config.seed,
            checkpoints=Checkpoints(workspace.checkpoints(run_key), config.checkpoint.interval_seconds),
            tracker=tracker,
            views=config.tracking.tensorboard,
            workspace=workspace,
        )
        metrics = save_trained(fit, config.model, run_key=run_key, workspace=workspace)
        files.write_json(workspace.metrics("train"), metrics)
        tracker.artifact(workspace.history, folder="plots")


if __name__ == "__main__":
    sys.exit(errors.run(main))
