"""The training loop: against a loop written out by hand, and across interruptions."""

import functools
import math
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo import OptimizedModule

from cifarflow.data.packed import read_split
from cifarflow.errors import CheckpointError, ConfigError, MissingInputError, TrainingError
from cifarflow.models.speednet import SpeedNet
from cifarflow.training import interrupts
from cifarflow.training import task as task_module
from cifarflow.training.checkpoint import Checkpoints
from cifarflow.training.fit import Fit
from cifarflow.training.graphs import RecordedStep
from cifarflow.training.interrupts import TrainingInterrupted
from cifarflow.training.state import TrainState
from cifarflow.training.step import Judge
from cifarflow.training.watch import LossWatch
from cifarflow.workspace import Workspace
from tests.support.networks import network
from tests.support.small import small_config, small_fit, small_task, small_workspace

COURSE = {
    "model__name": "tudui",
    "train__optimizer__name": "sgd",
    "train__optimizer__sgd__momentum": 0.0,
    "train__optimizer__sgd__nesterov": False,
    "train__optimizer__sgd__weight_decay": 0.0,
    "train__schedule__name": "constant",
    "train__loss__label_smoothing": 0.0,
    "train__selection": [],
    "train__augment__flip": "none",
    "train__augment__translate_pixels": 0,
    "train__micro_batch_size": 50,
}
STEPS_AN_EPOCH = 4  # of the small configuration


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return small_workspace(tmp_path_factory.mktemp("small"), small_config())


def weights(fit: Fit) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in fit.state.model.state_dict().items()}


def assert_equal_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def fresh(folder: Path, interval_seconds: float = 1e9) -> Checkpoints:
    return Checkpoints(folder=folder, interval_seconds=interval_seconds)


def test_the_loop_is_the_loop_of_the_course_written_out(workspace: Workspace, tmp_path: Path) -> None:
    config = small_config(**COURSE, train__epochs=2)
    fit = small_fit(workspace, config, checkpoints=fresh(tmp_path))
    fit.run()

    torch.manual_seed(config.seed)
    model = network("tudui", image_size=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.train.optimizer.sgd.learning_rate)
    split, dataset = read_split(workspace.split("train")), fit.task.dataset
    pixels = torch.from_numpy(split.images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (dataset.mean, dataset.std))
    for epoch in range(2):
        for indices in fit.task.batches.batches(epoch):
            optimizer.zero_grad()
            labels = torch.from_numpy(split.labels)[indices]
            F.cross_entropy(model(((pixels - mean) / std)[indices]), labels).backward()
            optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(weights(fit)[name], tensor, atol=1e-5, rtol=1e-4)


def test_micro_batches_give_the_gradients_of_the_whole_batch(workspace: Workspace, tmp_path: Path) -> None:
    whole = small_fit(workspace, small_config(**COURSE), checkpoints=fresh(tmp_path))
    parts = small_fit(
        workspace, small_config(**{**COURSE, "train__micro_batch_size": 7}), checkpoints=fresh(tmp_path)
    )
    whole.run()
    parts.run()
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, atol=1e-5, rtol=1e-4)


def test_micro_batches_at_once_end_as_one_after_the_other(workspace: Workspace, tmp_path: Path) -> None:
    """Batch norm and all: of a step's five, two go through the network and then three."""
    common = {"train__micro_batch_size": 10, "train__selection": [], "train__epochs": 1}
    ends: list[dict[str, torch.Tensor]] = []
    for at_once, pictures in ((1, [10, 10, 10, 10, 10]), (3, [20, 30])):
        config = small_config(**common, train__micro_batches_at_once=at_once)
        fit = small_fit(workspace, config, checkpoints=fresh(tmp_path / str(at_once)))
        passes: list[int] = []

        def count(_: nn.Module, inputs: tuple[torch.Tensor], seen: list[int] = passes) -> None:
            seen.append(len(inputs[0]))

        fit.step.model.register_forward_pre_hook(count)
        fit.run()
        assert passes[: len(pictures)] == pictures
        ends.append(weights(fit))
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, atol=1e-3, rtol=1e-3, msg=name)


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(
    workspace: Workspace, tmp_path: Path
) -> None:
    runs = [small_fit(workspace, small_config(seed=s), checkpoints=fresh(tmp_path)) for s in (1, 1, 2)]
    for fit in runs:
        fit.run()
    assert_equal_weights(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0])["head.weight"], weights(runs[2])["head.weight"])


def test_a_batch_weighs_the_same_in_running_statistics_however_it_is_cut(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Micro-batches of the same pictures, so that their means are those of the batch."""
    network = {"model__name": "tudui", "model__tudui__batch_norm": True, "train__batch_size": 40}
    means = []
    for size, count in ((40, 40), (10, 40), (10, 20)):
        config = small_config(**network, train__micro_batch_size=size)
        fit = small_fit(workspace, config, checkpoints=fresh(tmp_path / f"{size} {count}"))
        images = fit.task.train.images[:10].repeat(count // 10, 1, 1, 1)
        layer = next(module for module in fit.state.model.modules() if isinstance(module, nn.BatchNorm2d))
        statistics: Any = layer.running_mean
        before = statistics.clone()
        fit.step.model.train()
        fit.step(images, torch.zeros(count, dtype=torch.int64), fit.task.preprocess(16))
        means.append(statistics - before)
    torch.testing.assert_close(means[1], means[0])
    torch.testing.assert_close(means[2], means[0] * (1 - 0.9**0.5) / 0.1)


def test_deterministic_and_compiled_trainings_end_with_the_same_weights(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured as for a compiler, but run by torch's own kernels: generating code takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, deterministic, compiled = (
        small_fit(
            workspace,
            small_config(train__micro_batches_at_once=1, train__fused_kernels=False, **changes),
            checkpoints=fresh(tmp_path / str(number)),
        )
        for number, changes in enumerate(({}, {"train__deterministic": True}, {"train__compile": True}))
    )
    assert isinstance(compiled.step.judge, OptimizedModule) and isinstance(plain.step.judge, Judge)
    for fit in (plain, deterministic, compiled):
        fit.task.compute.take_effect()
        fit.run()
        assert_equal_weights(weights(fit), weights(plain))
    torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler, c++")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch about itself
def test_a_step_by_generated_code_learns_as_one_by_torchs_own(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16, where generated code rounds elsewhere: what looks for equal numbers in the gradient finds none."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "generated"))
    short = {
        "train__precision": "bf16",
        "train__epochs": 0.5,
        "train__micro_batch_size": 50,
        "train__selection": [],
        "train__optimizer__muon__input_bias_until": 1.0,  # so that one code serves all steps
    }
    plain, generated = (
        small_fit(
            workspace,
            small_config(**short, train__compile=compiles),
            checkpoints=fresh(tmp_path / str(compiles)),
        )
        for compiles in (False, True)
    )
    for fit in (plain, generated):
        fit.run()
    assert generated.state.step == 2
    for name, tensor in weights(generated).items():
        assert torch.isfinite(tensor).all(), name
    losses = [fit.state.history[-1]["train_loss"] for fit in (plain, generated)]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


class SignalAt(Checkpoints):
    """Checkpoints of a process that gets a SIGTERM once `steps_left` steps are done."""

    steps_left = 0
    asked = 0

    def is_due(self) -> bool:
        self.asked += 1
        if self.asked % (STEPS_AN_EPOCH + 1):  # the last time in each epoch is after its record
            self.steps_left -= 1
            if self.steps_left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().is_due()


@pytest.mark.parametrize("optimizer", ["muon", "sgd", "adamw"])
@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_stopped_run_ends_bit_for_bit_as_an_uninterrupted_one(
    workspace: Workspace, tmp_path: Path, optimizer: str, step: int
) -> None:
    config = small_config(
        train__optimizer__name=optimizer, train__averaging__start=0.25, train__averaging__decay=0.8
    )
    straight = small_fit(workspace, config, checkpoints=fresh(tmp_path / "straight"))
    straight.run()
    checkpoints = SignalAt(folder=tmp_path / "stopped", interval_seconds=1e9)
    checkpoints.steps_left = step
    with pytest.raises(TrainingInterrupted, match=f"stopped after step {step},"):
        small_fit(workspace, config, checkpoints=checkpoints).run()
    resumed = small_fit(workspace, config, checkpoints=fresh(tmp_path / "stopped"))
    assert resumed.state.step == step
    resumed.run()
    assert_equal_weights(weights(straight), weights(resumed))
    assert_equal_weights(straight.state.result.state_dict(), resumed.state.result.state_dict())
    timeless = [
        [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
            for row in fit.state.history
        ]
        for fit in (straight, resumed)
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_signal_after_an_epochs_last_step_is_heard(
    workspace: Workspace, tmp_path: Path, epoch: int
) -> None:
    """Also after the very last: who asked for an end must not see the next stage start."""

    def signal_at(state: TrainState) -> None:
        if len(state.history) == epoch:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingInterrupted, match=f"stopped after step {epoch * 4},"):
        small_fit(workspace, small_config(), checkpoints=fresh(tmp_path), on_epoch=signal_at).run()
    resumed = small_fit(workspace, small_config(), checkpoints=fresh(tmp_path))
    assert len(resumed.state.history) == epoch
    resumed.run()
    assert len(resumed.state.history) == 3


@pytest.mark.parametrize("interval_seconds", [3, 11])
def test_a_kill_loses_no_more_than_the_interval_between_checkpoints(
    workspace: Workspace, tmp_path: Path, interval_seconds: int
) -> None:
    """By a clock on which a step takes a second and a validation two; the interval is below or above an epoch."""
    now = [0.0]
    checkpoints = Checkpoints(folder=tmp_path, interval_seconds=interval_seconds, clock=lambda: now[0])
    saved_at, lost = [0.0], []
    record, validate, save = TrainState.record, Fit._validate, Checkpoints.save

    def step(self: TrainState, *found: torch.Tensor) -> None:
        record(self, *found)
        now[0] += 1
        lost.append(now[0] - saved_at[0])  # by a kill at the end of this step, before anything else

    def slow_validation(self: Fit) -> dict[str, float]:
        now[0] += 2
        lost.append(now[0] - saved_at[0])
        return validate(self)

    def note(self: Checkpoints, *what: Any, **more: Any) -> Path:
        saved_at[0] = now[0]
        return save(self, *what, **more)

    fit = small_fit(workspace, small_config(train__epochs=8), checkpoints=checkpoints)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "record", step)
        patch.setattr(Fit, "_validate", slow_validation)
        patch.setattr(Checkpoints, "save", note)
        fit.run()
    assert now[0] == 8 * (STEPS_AN_EPOCH + 2)
    assert interval_seconds <= max(lost) < interval_seconds + 2, "the interval, and what was under way"


def test_the_result_is_the_moving_average_of_weights_and_statistics(
    workspace: Workspace, tmp_path: Path
) -> None:
    config = small_config(train__epochs=2, train__averaging__start=0.5, train__averaging__decay=0.75)
    seen: list[dict[str, torch.Tensor]] = []

    class Watch(Checkpoints):
        def is_due(self) -> bool:
            if len(seen) < fit.state.step:
                seen.append(weights(fit))
            return False

    fit = small_fit(workspace, config, checkpoints=Watch(folder=tmp_path, interval_seconds=1e9))
    fit.run()
    assert len(seen) == 8
    for name in ("head.weight", "groups.0.conv1.weight", "groups.1.norm1.running_var"):
        expected = seen[4][name]
        for later in seen[5:]:
            expected = 0.75 * expected + 0.25 * later[name]
        torch.testing.assert_close(fit.state.result.state_dict()[name], expected)
        assert not torch.equal(expected, seen[-1][name])


def test_checkpoints_on_the_way_do_not_change_the_result(workspace: Workspace, tmp_path: Path) -> None:
    config = small_config()
    plain = small_fit(workspace, config, checkpoints=fresh(tmp_path / "a"))
    saving = small_fit(workspace, config, checkpoints=fresh(tmp_path / "b", interval_seconds=0.0))
    plain.run()
    saving.run()
    assert_equal_weights(weights(plain), weights(saving))
    assert len(list((tmp_path / "b").iterdir())) == 2


def test_a_loss_that_is_not_finite_stops_with_step_and_remedy(workspace: Workspace, tmp_path: Path) -> None:
    config = small_config(**{**COURSE, "train__optimizer__sgd__learning_rate": 1e30})
    where = r"the loss became (nan|inf) at step \d+ of 12.*learning rate"
    with pytest.raises(TrainingError, match=f"{where}.*There is no checkpoint from before it"):
        small_fit(workspace, config, checkpoints=fresh(tmp_path / "none")).run()
    checkpoints = fresh(tmp_path / "each step", interval_seconds=0.0)
    with pytest.raises(TrainingError, match=where) as stopped:
        small_fit(workspace, config, checkpoints=checkpoints).run()
    assert f"The last checkpoint is {checkpoints.newest()}." in str(stopped.value)


def test_weights_that_only_the_validation_finds_broken_are_no_result(
    workspace: Workspace, tmp_path: Path
) -> None:
    """The update of the last step, which no later loss would tell of."""
    config = small_config(**{**COURSE, "train__epochs": 0.25, "train__optimizer__sgd__learning_rate": 1e30})
    fit = small_fit(workspace, config, checkpoints=fresh(tmp_path))
    assert fit.task.total_steps == 1
    with pytest.raises(TrainingError, match=r"the validation loss became (nan|inf) at step 1 of 1"):
        fit.run()


@pytest.mark.parametrize("kind", ["keys", "shapes"])
def test_a_whole_checkpoint_of_something_else_is_no_traceback(
    workspace: Workspace, tmp_path: Path, kind: str
) -> None:
    fit = small_fit(workspace, small_config(), checkpoints=fresh(tmp_path))
    fit.checkpoints.save(fit.state.snapshot(gradients=False), step=1)
    if kind == "keys":
        fit.checkpoints.save({"step": 2}, step=2)
        assert small_fit(workspace, small_config(), checkpoints=fresh(tmp_path)).state.step == 0
    else:
        fit.checkpoints.save({**fit.state.snapshot(gradients=False), "model": {}}, step=2)
        with pytest.raises(CheckpointError, match=r"was not saved by this training.*Delete that folder"):
            small_fit(workspace, small_config(), checkpoints=fresh(tmp_path))


def test_the_resolution_schedule_and_fractional_epochs(workspace: Workspace, tmp_path: Path) -> None:
    stages = [{"until": 0.3, "pixels": 16}, {"until": 0.5, "pixels": 20}]
    config = small_config(data__shapes__image_size=24, train__epochs=2.5, train__resolution=stages)
    fit = small_fit(
        small_workspace(tmp_path / "data", config), config, checkpoints=fresh(tmp_path / "states")
    )
    assert fit.task.total_steps == 10
    assert [fit.task.pixels_at(step) for step in range(10)] == [16] * 3 + [20] * 2 + [24] * 5
    fit.run()
    assert [row["pixels"] for row in fit.state.history] == [20, 24, 24], (
        "validated at the size of the last step"
    )
    large = small_config(train__epochs=2.5, train__resolution=[{"until": 0.5, "pixels": 400}])
    assert small_task(workspace, large).pixels_at(0) == 16, "pictures are never scaled up"


def test_a_step_trains_on_the_hardest_of_its_batch_and_no_others(
    workspace: Workspace, tmp_path: Path
) -> None:
    config = small_config(
        train__epochs=2, train__selection=[{"until": 0.5, "keep": 1.0}, {"until": 1.0, "keep": 0.4}]
    )
    found: list[torch.Tensor] = []

    class Watch(Checkpoints):
        def is_due(self) -> bool:
            if len(found) < fit.state.step:
                found.append(fit.state.difficulty.losses.clone())
            return False

    fit = small_fit(workspace, config, checkpoints=Watch(folder=tmp_path, interval_seconds=1e9))
    fit.run()
    per_epoch = fit.task.batches.steps_per_epoch
    assert found[per_epoch - 1].isfinite().all(), "the first epoch sees every picture"
    for step, drawn in enumerate(fit.task.batches.batches(1), start=per_epoch):
        before, after = found[step - 1], found[step]
        changed = (before != after).nonzero().flatten()
        kept = before[drawn].topk(round(0.4 * len(drawn))).indices
        assert changed.tolist() == drawn[kept].sort().values.tolist()
    assert [row["images_per_second"] * row["seconds"] for row in fit.state.history] == pytest.approx(
        [len(fit.task.train.labels), sum(round(0.4 * len(drawn)) for drawn in fit.task.batches.batches(1))]
    )


def test_missing_data_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="uv run dvc repro prepare"):
        small_task(Workspace.at(tmp_path, {}), small_config())


@pytest.mark.parametrize(
    ("image_size", "changes", "what", "remedy"),
    [
        (40, {"model__name": "tudui"}, "25 pictures of 16 px", "how large they are by train.resolution"),
        (40, {"model__name": "vgg16"}, "25 pictures of 16 px", "how large they are by train.resolution"),
        (16, {"model__name": "vgg16"}, "25 pictures of 16 px", "how large they are by the data"),
        (16, {"train__micro_batch_size": 1}, "one picture of 16 px", "train.micro_batch_size"),
    ],
    ids=["tudui", "vgg16", "vgg16 on small data", "one picture"],
)
def test_what_a_network_cannot_train_on_is_said_before_training(
    tmp_path: Path, image_size: int, changes: dict[str, object], what: str, remedy: str
) -> None:
    config = small_config(
        data__shapes__image_size=image_size, train__resolution=[{"until": 0.5, "pixels": 16}], **changes
    )
    task = small_task(small_workspace(tmp_path, config), config)
    with pytest.raises(ConfigError, match=rf"cannot train on {what} at once .*{re.escape(remedy)}"):
        task.new_model(config.model, seed=1)


def test_large_pictures_whiten_by_fewer_of_them(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(SpeedNet, "init_whiten", lambda _, images: taken.append(len(images)))
    for pixels in (3 * 16 * 16, 1):
        monkeypatch.setattr(task_module, "WHITENING_PIXELS", pixels)
        small_task(workspace, small_config()).new_model(small_config().model, seed=1)
    assert taken == [3, 1]


def with_dropout(workspace: Workspace, folder: Path, *, seed: int = 1, **changes: Any) -> Fit:
    """A run of a network that draws at random, in a process whose generator was used before."""
    config = small_config(train__optimizer__name="sgd", seed=seed, **changes)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
    torch.seed()
    return Fit.start(small_task(workspace, config), model, checkpoints=fresh(folder), on_epoch=lambda _: None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_optimizers_compute_in_the_precision_of_the_training(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    seen: list[bool] = []
    fit = small_fit(workspace, small_config(train__precision=precision), checkpoints=fresh(tmp_path))
    monkeypatch.setattr(
        fit.state.optimizers[0], "step", lambda: seen.append(torch.is_autocast_enabled("cpu"))
    )
    fit.run()
    assert set(seen) == {precision == "bf16"}


def test_steps_that_draw_at_random_are_not_recorded(workspace: Workspace, tmp_path: Path) -> None:
    """On a GPU; choosing it needs none."""
    drawing, plain = (
        with_dropout(workspace, tmp_path),
        small_fit(workspace, small_config(), checkpoints=fresh(tmp_path)),
    )
    for fit, recorded in ((drawing, False), (plain, True)):
        task = replace(fit.task, compute=replace(fit.task.compute, cuda_graphs=True))
        again = Fit.start(task, fit.state.model, checkpoints=fresh(tmp_path), on_epoch=lambda _: None)
        assert isinstance(again.take_step, RecordedStep) == recorded


def test_a_state_with_a_loss_that_is_not_finite_is_never_saved(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where losses are looked at seldom."""
    monkeypatch.setattr(LossWatch, "is_due", lambda _: False)
    config = small_config(**{**COURSE, "train__optimizer__sgd__learning_rate": 1e30})
    with pytest.raises(TrainingError, match="the loss became"):
        small_fit(workspace, config, checkpoints=fresh(tmp_path, interval_seconds=0.0)).run()
    for saved in tmp_path.iterdir():
        assert torch.load(saved, weights_only=True)["step"] <= 2, "the first steps may still be finite"


def test_weights_that_are_no_numbers_are_never_saved(workspace: Workspace, tmp_path: Path) -> None:
    """The loss of the step that broke them was finite, and the state from before it is the one to go on from."""
    checkpoints = fresh(tmp_path, interval_seconds=0.0)
    config = small_config(**COURSE)
    fit = small_fit(workspace, config, checkpoints=checkpoints)
    (sgd,) = fit.state.optimizers

    def broken(*_: object) -> None:
        if fit.state.step == 2:
            sgd.param_groups[0]["params"][-1].data.fill_(math.inf)

    sgd.register_step_post_hook(broken)
    with pytest.raises(TrainingError, match=r"the weights became nan at step 3 of 12") as stopped:
        fit.run()
    newest = checkpoints.newest()
    assert newest is not None and f"The last checkpoint is {newest}." in str(stopped.value)
    assert small_fit(workspace, config, checkpoints=checkpoints).state.step == 2


@pytest.mark.parametrize("last", [4, 12])
def test_a_run_killed_before_an_epochs_record_records_its_gradients_all_the_same(
    workspace: Workspace, tmp_path: Path, last: int
) -> None:
    seen: list[dict[str, torch.Tensor | None]] = []

    def note(state: TrainState) -> None:
        if state.step == last:
            seen.append({name: p.grad for name, p in state.model.named_parameters()})

    small_fit(workspace, small_config(), checkpoints=fresh(tmp_path / "a"), on_epoch=note).run()
    checkpoints = SignalAt(folder=tmp_path / "b", interval_seconds=1e9)
    checkpoints.steps_left = last
    with pytest.raises(TrainingInterrupted, match=f"stopped after step {last},"):
        small_fit(workspace, small_config(), checkpoints=checkpoints, on_epoch=note).run()
    assert len(seen) == 1
    small_fit(workspace, small_config(), checkpoints=fresh(tmp_path / "b"), on_epoch=note).run()
    straight, resumed = seen
    assert any(gradient is not None for gradient in straight.values())
    for name, gradient in straight.items():
        other = resumed[name]
        assert (gradient is None) == (other is None)
        assert gradient is None or (other is not None and torch.equal(gradient, other))


def test_a_second_signal_ends_at_once_where_the_first_is_not_the_same_ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 0.5, 10.0])
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: next(clock))
    with pytest.raises(TrainingInterrupted, match="stopped at once"), interrupts.Interrupts() as open_now:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # torchrun's, a moment later
        assert open_now.requested
        signal.raise_signal(signal.SIGINT)


def test_dropout_draws_the_same_after_a_stop(workspace: Workspace, tmp_path: Path) -> None:
    straight, other = with_dropout(workspace, tmp_path / "a"), with_dropout(workspace, tmp_path / "b", seed=2)
    for fit in (straight, other):
        assert fit.step.draws
        fit.run()
    assert not torch.equal(straight.state.model[1].weight, other.state.model[1].weight)  # pyright: ignore
    stopped = with_dropout(workspace, tmp_path / "c")
    checkpoints = SignalAt(folder=tmp_path / "c", interval_seconds=1e9)
    checkpoints.steps_left = 4
    with pytest.raises(TrainingInterrupted):
        replace(stopped, checkpoints=checkpoints).run()
    resumed = with_dropout(workspace, tmp_path / "c")
    assert resumed.state.step == 4
    resumed.run()
    assert_equal_weights(weights(straight), weights(resumed))


def test_dropout_draws_the_same_however_many_micro_batches_are_asked_for_at_once(
    workspace: Workspace, tmp_path: Path
) -> None:
    fits = [
        with_dropout(
            workspace, tmp_path / str(count), train__micro_batch_size=10, train__micro_batches_at_once=count
        )
        for count in (1, 3)
    ]
    for fit in fits:
        fit.run()
    assert_equal_weights(*map(weights, fits))


def test_looking_at_the_sizes_changes_no_weight(workspace: Workspace) -> None:
    small, full = (
        small_task(workspace, small_config(train__resolution=stages)).new_model(small_config().model, seed=1)
        for stages in ([{"until": 0.5, "pixels": 16}], [])
    )
    assert small.training and full.training
    assert_equal_weights(small.state_dict(), full.state_dict())
    assert all(not tensor.any() for name, tensor in full.state_dict().items() if name.endswith("tracked"))
