"""The training loop."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifarflow.compute.processor import pictures_at_once
from cifarflow.compute.streams import one_ahead
from cifarflow.errors import CheckpointError, TrainingError
from cifarflow.evaluation.predict import predict_logits
from cifarflow.training.checkpoint import Checkpoints
from cifarflow.training.difficulty import Difficulty
from cifarflow.training.graphs import RecordedStep, recorded
from cifarflow.training.interrupts import Interrupts, TrainingInterrupted
from cifarflow.training.optimizers import (
    build_optimizers,
    compile_filters,
    keep_rates_on,
    schedule_groups,
)
from cifarflow.training.progress import TrainingProgress, training_progress
from cifarflow.training.schedules import learning_rate_factor
from cifarflow.training.state import SNAPSHOT_KEYS, TrainState
from cifarflow.training.step import Judge, Step, batch_norms
from cifarflow.training.task import Task
from cifarflow.training.watch import LossWatch, NotFiniteError

EpochHook = Callable[[TrainState], None]
VALIDATION_BATCH_SIZE = 125
VALIDATION_BATCHES_ON_A_GPU = 8
"""At once: one of them leaves it idle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """One run of training: `Fit(...).run()` takes `state` from where it stands to the end."""

    task: Task
    state: TrainState
    step: Step
    take_step: Step | RecordedStep
    """`step`, or its recording."""
    checkpoints: Checkpoints
    on_epoch: EpochHook
    watch: LossWatch = field(default_factory=LossWatch)

    @classmethod
    def start(cls, task: Task, model: nn.Module, *, checkpoints: Checkpoints, on_epoch: EpochHook) -> "Fit":
        """A run at its first step, or at the last checkpoint where there is one."""
        config = task.config
        optimizers = build_optimizers(config.optimizer.name, model, **config.optimizer.options())
        state = TrainState(
            model=model,
            optimizers=optimizers,
            difficulty=Difficulty.unknown(len(task.train.labels), task.compute.device),
            average_decay=config.averaging.decay,
        )
        if (saved := checkpoints.load(keys=SNAPSHOT_KEYS)) is not None:
            _restore(state, saved, folder=checkpoints.folder)
        task.processes.agree(model)
        judge = Judge(
            model,
            loss=task.loss,
            label_smoothing=config.loss.label_smoothing,
            compute=task.compute,
        )
        step = Step(
            model=model,
            judge=task.compute.compiled(judge),
            optimizers=optimizers,
            compute=task.compute,
            batch_size=config.batch_size,
            batch_norms=batch_norms(model),
            seed=task.batches.seed,
            processes=task.processes,
        )
        compile_filters(optimizers, task.compute.compiled)
        if task.compute.device.type == "cuda":
            keep_rates_on(task.compute.device, optimizers)
        return cls(
            task=task,
            state=state,
            step=step,
            take_step=recorded(step, asked=config.cuda_graphs is True),
            checkpoints=checkpoints,
            on_epoch=on_epoch,
        )

    def run(self) -> None:
        """Train to the end. Raises TrainingInterrupted (state saved) and TrainingError (loss not finite)."""
        per_epoch, total = self.task.batches.steps_per_epoch, self.task.total_steps
        is_main = self.task.processes.is_main
        with Interrupts() as interrupts, training_progress(total, shown=is_main) as progress:
            if self.state.step:
                progress.say(
                    f"going on from step {self.state.step} of {total} (checkpoint in {self.checkpoints.folder})"
                )
            for epoch in range(len(self.state.history), math.ceil(total / per_epoch)):
                self._train_epoch(epoch, interrupts, progress)
                row = self.state.finish_epoch(self._validate())
                progress.epoch(row, epochs=self.task.config.epochs)
                self.on_epoch(self.state)
                self._keep_safe(interrupts)  # the validation took its time too
            if is_main:  # DVC records the result some seconds later: killed until then, the run is not lost
                self._save()
            self._stop_where_asked(interrupts)

    def _train_epoch(self, epoch: int, interrupts: Interrupts, progress: TrainingProgress) -> None:
        state, task = self.state, self.task
        first_step = epoch * task.batches.steps_per_epoch
        batches = task.batches.batches(epoch)[: task.total_steps - first_step]

        def prepare(step: int) -> tuple[Tensor, Tensor, Tensor]:
            indices = state.difficulty.hardest(batches[step - first_step], task.kept_at(step))
            return indices, *task.drawn(indices, epoch=epoch, step=step)

        steps = range(state.step, first_step + len(batches))
        prepared = one_ahead(task.compute.device, prepare, steps)
        self.step.model.train()
        for step in steps:
            start = time.perf_counter()
            indices, images, labels = next(prepared)
            schedule_groups(
                state.optimizers, progress=step / task.total_steps, factor=self._learning_rate_factor
            )
            self.step.clear_gradients()
            losses, right = self.take_step(images, labels, task.preprocess(task.pixels_at(step)), number=step)
            state.record(indices, losses, right)
            self.watch.add(losses, right)
            if self.watch.is_due() or step == steps[-1]:
                self._check_losses()
            state.seconds += time.perf_counter() - start
            if task.averages_at(state.step):
                state.average_weights()
            progress.step(state.step, self.watch.last, images_per_second=state.seen / state.seconds)
            self._keep_safe(interrupts)

    def _check_losses(self) -> None:
        """Raises TrainingError for the first loss of the last steps that is not finite."""
        try:
            self.watch.look()
        except NotFiniteError as error:
            step = self.state.step - error.steps_ago
            raise self._diverged("loss", error.loss, step=step) from None

    def _keep_safe(self, interrupts: Interrupts) -> None:
        """Save the state when it is time to, and stop when somebody wants the process to end."""
        if self.task.processes.is_main and self.checkpoints.is_due():
            self._save()
        self._stop_where_asked(interrupts)

    def _stop_where_asked(self, interrupts: Interrupts) -> None:
        """Raises TrainingInterrupted, with the state saved, when a signal came to any of the processes."""
        processes = self.task.processes
        if not processes.any(interrupts.requested, self.task.compute.device):
            return
        if processes.is_main:
            self._save()
        raise TrainingInterrupted(
            f"stopped after step {self.state.step}, saved in {self.checkpoints.folder}; the same command goes on"
        )

    def _save(self) -> None:
        """Raises TrainingError in place of keeping a state that no training could go on from."""
        state = self.state
        self._check_losses()
        if not state.is_finite():
            raise self._diverged("weights", math.nan, step=state.step)
        self.checkpoints.save(state.snapshot(gradients=self._epoch_waits), step=state.step)

    @property
    def _epoch_waits(self) -> bool:
        """Whether all steps of an epoch are done, and it has no row in the history yet."""
        step, per_epoch = self.state.step, self.task.batches.steps_per_epoch
        return self.state.seen > 0 and (step % per_epoch == 0 or step == self.task.total_steps)

    def _learning_rate_factor(self, progress: float) -> float:
        schedule = self.task.config.schedule
        return learning_rate_factor(
            progress,
            name=schedule.name,
            warmup_fraction=schedule.warmup_fraction,
            final_fraction=schedule.final_fraction,
        )

    def _validate(self) -> dict[str, float]:
        """Loss and accuracy on the validation split, at the size of pictures that the epoch ended with."""
        task, model = self.task, self.state.result.eval()
        pixels = task.pixels_at(self.state.step - 1)
        labels = task.validation.labels
        own = slice(*task.processes.bounds(len(labels)))
        times = VALIDATION_BATCHES_ON_A_GPU if labels.is_cuda else 1
        with task.compute.autocast():
            logits = predict_logits(
                model,
                task.validation.images[own],
                preprocess=task.preprocess(pixels),
                batch_size=min(VALIDATION_BATCH_SIZE, pictures_at_once(pixels)) * times,
            )
        loss = self.task.loss(logits, labels[own], 0.0).sum()
        found = torch.stack((loss.double(), (logits.argmax(1) == labels[own]).sum().double()))
        loss_sum, correct = task.processes.add_up(found).tolist()
        if not math.isfinite(loss_sum):  # the last step's weights, whose loss no step will see
            raise self._diverged("validation loss", loss_sum, step=self.state.step)
        return {
            "validation_loss": loss_sum / len(labels),
            "validation_accuracy": correct / len(labels),
            "learning_rate": float(self.state.optimizers[0].param_groups[0]["lr"]),
            "pixels": float(pixels),
        }

    def _diverged(self, what: str, value: float, *, step: int) -> TrainingError:
        newest = self.checkpoints.newest()
        saved = f"The last checkpoint is {newest}." if newest else "There is no checkpoint from before it."
        return TrainingError(
            f"the {what} became {value} at step {step} of {self.task.total_steps}. "
            f"Lower the learning rate of train.optimizer.{self.task.config.optimizer.name}, "
            f"or set train.precision to fp32. {saved}"
        )


def _restore(state: TrainState, saved: dict[str, Any], *, folder: Path) -> None:
    """Raises CheckpointError when `saved` is the state of something else, though it is whole."""
    try:
        state.restore(saved)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the checkpoint in {folder} was not saved by this training ({type(error).__name__}: {reason}). "
            "Delete that folder, then run the same command again: training starts anew."
        ) from None
