"""The train stage as one call: from a task to a model on disk."""

from typing import Any

from cifarflow.config.schema import ModelConfig
from cifarflow.models.bundle import ModelDescription, save_model
from cifarflow.training.checkpoint import Checkpoints
from cifarflow.training.fit import Fit
from cifarflow.training.report import Recorder, train_metrics, write_history
from cifarflow.training.task import Task
from cifarflow.workspace import Workspace


def train(
    task: Task,
    model_config: ModelConfig,
    *,
    seed: int,
    checkpoints: Checkpoints,
    recorder: Recorder | None = None,
) -> Fit:
    """Train from the last checkpoint, or from fresh weights, to the end.

    Every epoch goes to `recorder`; of several processes, only the main one has it.
    """
    model = task.new_model(model_config, seed=seed)
    if recorder is not None:
        recorder.start(task, model)
    on_epoch = recorder.epoch if recorder is not None else lambda state: None
    fit = Fit.start(task, model, checkpoints=checkpoints, on_epoch=on_epoch)
    fit.run()
    return fit


def save_trained(
    fit: Fit, model_config: ModelConfig, *, run_key: str, workspace: Workspace
) -> dict[str, Any]:
    """Write the model, its description and the history; returns the metrics of the run."""
    dataset = fit.task.dataset
    description = ModelDescription(
        architecture=model_config.name,
        options=model_config.options(),
        classes=dataset.classes,
        image_size=dataset.image_size,
        mean=dataset.mean,
        std=dataset.std,
        run_key=run_key,
    )
    save_model(
        fit.state.result, description, weights=workspace.model_weights, target=workspace.model_description
    )
    write_history(
        fit.state.history, workspace.history
    )  # a run that was killed after its last epoch wrote none again
    return train_metrics(fit.state, fit.task)
