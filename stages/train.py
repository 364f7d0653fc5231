"""train: fit the network to the training split, from the last checkpoint where there is one."""

import sys

import start  # noqa: F401 - first: it says where cifarflow is

from cifarflow import files, stage
from cifarflow.compute.processes import joined
from cifarflow.config import load_config
from cifarflow.provenance import compute_tags, tracked_stage, train_key
from cifarflow.training.checkpoint import Checkpoints
from cifarflow.training.report import Recorder
from cifarflow.training.task import Task
from cifarflow.training.train import save_trained, train
from cifarflow.workspace import Workspace


def main() -> None:
    workspace = Workspace.here()
    config = load_config(workspace.params)
    with joined() as processes:
        task = Task.load(config.train, seed=config.seed, workspace=workspace, processes=processes)
        facts = task.compute.describe()
        run_key = train_key(config, workspace, data=task.dataset.digests, compute=facts)
        checkpoints = Checkpoints(workspace.checkpoints(run_key), config.checkpoint.interval_seconds)
        if not processes.is_main:
            train(task, config.model, seed=config.seed, checkpoints=checkpoints)
            return
        print("train:", *task.compute.reasons, *task.advice, sep="\n  ", flush=True)
        with tracked_stage(
            "train", config, workspace, run_key=run_key, dataset=task.dataset, tags=compute_tags(facts)
        ) as tracker:
            recorder = Recorder(tracker=tracker, views=config.tracking.tensorboard, history=workspace.history)
            fit = train(task, config.model, seed=config.seed, checkpoints=checkpoints, recorder=recorder)
            metrics = save_trained(fit, config.model, run_key=run_key, workspace=workspace)
            files.write_json(workspace.metrics("train"), metrics)
            tracker.artifact(workspace.history, folder="plots")


if __name__ == "__main__":
    sys.exit(stage.run("train", main))
