"""Steps recorded as CUDA graphs: the same training as without, on a GPU; elsewhere, how the choice is made."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cifarflow.compute.plan import plan_compute
from cifarflow.errors import ConfigError, TrainingError
from cifarflow.training import fit as fit_module
from cifarflow.training.checkpoint import Checkpoints
from cifarflow.training.fit import Fit
from cifarflow.training.graphs import RecordedStep, recorded
from cifarflow.training.watch import LossWatch, NotFiniteError
from cifarflow.workspace import Workspace
from tests.support.small import small_config, small_fit, small_task, small_workspace

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

GPU: dict[str, Any] = {
    "train__device": "cuda",
    "train__deterministic": True,
    "train__epochs": 6,
    "train__resolution": [{"until": 0.5, "pixels": 16}],
    "data__shapes__image_size": 20,
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return small_workspace(tmp_path_factory.mktemp("small"), small_config(data__shapes__image_size=20))


def trained(workspace: Workspace, folder: Path, **changes: Any) -> Fit:
    checkpoints = Checkpoints(folder=folder, interval_seconds=1e9)
    fit = small_fit(workspace, small_config(**{**GPU, **changes}), checkpoints=checkpoints)
    fit.run()
    return fit


def assert_equal_weights(left: Fit, right: Fit) -> None:
    theirs = right.state.model.state_dict()
    for name, tensor in left.state.model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@needs_gpu
@pytest.mark.parametrize("optimizer", ["muon", "sgd", "adamw"])
@pytest.mark.parametrize("micro_batch_size", [25, "auto"])
def test_recorded_steps_end_with_the_weights_of_plain_ones(
    workspace: Workspace, tmp_path: Path, optimizer: str, micro_batch_size: int | str
) -> None:
    changes: dict[str, Any] = {
        "train__optimizer__name": optimizer,
        "train__micro_batch_size": micro_batch_size,
    }
    plain = trained(workspace, tmp_path / "plain", train__cuda_graphs=False, **changes)
    recorded = trained(workspace, tmp_path / "recorded", train__cuda_graphs=True, **changes)
    assert isinstance(recorded.take_step, RecordedStep) and not isinstance(plain.take_step, RecordedStep)
    assert any(recording is not None for recording in recorded.take_step.recordings.values())
    assert_equal_weights(recorded, plain)
    losses, others = ([row["train_loss"] for row in fit.state.history] for fit in (recorded, plain))
    assert losses == others and losses[-1] < losses[0]


@needs_gpu
def test_pictures_made_ahead_are_those_of_their_step(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = trained(workspace, tmp_path / "ahead")
    monkeypatch.setattr(fit_module, "one_ahead", lambda _, prepare, numbers: map(prepare, numbers))
    assert_equal_weights(ahead, trained(workspace, tmp_path / "in turn"))


@needs_gpu
def test_a_compiled_training_learns_as_one_by_torchs_own_kernels(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "generated"))
    fits = [
        trained(workspace, tmp_path / str(compiles), train__compile=compiles, train__deterministic=False)
        for compiles in (False, True)
    ]
    losses, others = ([row["train_loss"] for row in fit.state.history] for fit in fits)
    assert others == pytest.approx(losses, rel=0.1) and others[-1] < others[0]


@needs_gpu
def test_a_recorded_training_goes_on_from_its_checkpoint(workspace: Workspace, tmp_path: Path) -> None:
    whole = trained(workspace, tmp_path / "whole")
    checkpoints = Checkpoints(folder=tmp_path / "parts", interval_seconds=1e9)

    class StoppedError(Exception):
        pass

    def stop(state: Any) -> None:
        if len(state.history) == 2:
            checkpoints.save(state.snapshot(gradients=False), step=state.step)
            raise StoppedError

    first = small_fit(workspace, small_config(**GPU), checkpoints=checkpoints, on_epoch=stop)
    with pytest.raises(StoppedError):
        first.run()
    again = small_fit(workspace, small_config(**GPU), checkpoints=checkpoints)
    assert again.state.step == first.state.step > 0
    again.run()
    assert_equal_weights(again, whole)


@needs_gpu
def test_a_loss_that_is_not_a_number_names_its_own_step(workspace: Workspace, tmp_path: Path) -> None:
    messages = []
    for graphs in (False, True):
        changes = {"train__optimizer__name": "sgd", "train__optimizer__sgd__learning_rate": 1e30}
        with pytest.raises(TrainingError, match=r"the loss became (nan|inf) at step \d+ of ") as stopped:
            trained(workspace, tmp_path / str(graphs), train__cuda_graphs=graphs, **changes)
        messages.append(str(stopped.value).split(".")[0])
    assert messages[0] == messages[1]


def test_the_first_loss_that_is_not_finite_is_told_by_its_distance() -> None:
    watch = LossWatch()
    for loss in (2.0, 1.0):
        watch.add(torch.tensor([loss, loss]), torch.tensor([True, False]))
        assert watch.is_due(), "on a processor each step is looked at"
        watch.look()
    assert watch.last == (1.0, 0.5)
    for loss in (1.0, float("inf"), float("nan"), 1.0):
        watch.add(torch.tensor([loss]), torch.tensor([True]))
    with pytest.raises(NotFiniteError, match="loss inf, 2 steps ago"):
        watch.look()
    watch.look()
    assert watch.last == (1.0, 0.5), "what was read once is not read again"


def test_a_step_that_draws_is_not_recorded_and_that_is_said(
    workspace: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Fit.start(
        small_task(workspace, small_config(train__device="cpu")),
        nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(3 * 16 * 16, 10)),
        checkpoints=Checkpoints(folder=tmp_path, interval_seconds=1e9),
        on_epoch=lambda _: None,
    ).step
    step = replace(plain, compute=replace(plain.compute, cuda_graphs=True))
    assert recorded(plain, asked=True) is plain
    assert recorded(step, asked=False) is step
    assert "No CUDA graphs after all" in caplog.text
    with pytest.raises(ConfigError, match="draws at random"):
        recorded(step, asked=True)
    still = replace(step, model=nn.Linear(2, 2))
    assert isinstance(recorded(still, asked=False), RecordedStep)


def test_a_processor_has_no_graphs() -> None:
    for graphs in ("auto", False):
        config = small_config(train__device="cpu", train__cuda_graphs=graphs)
        plan = plan_compute(config.train, image_size=32)
        assert not plan.cuda_graphs and not any("graph" in reason for reason in plan.reasons)
    asked = small_config(train__device="cpu", train__cuda_graphs=True)
    with pytest.raises(
        ConfigError, match=r"train\.cuda_graphs is true, but there are none on cpu\. Use auto"
    ):
        plan_compute(asked.train, image_size=32)
