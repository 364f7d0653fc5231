"""TensorBoard's files, read back with its own reader."""

import logging
import multiprocessing
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cifarflow.config.schema import MlflowConfig, TensorboardConfig, TrackingConfig
from cifarflow.tracking import PipelineState, RunIdentity, open_tracker
from cifarflow.tracking.journal import all_journals
from cifarflow.tracking.tensorboard import TensorboardView, chart_of, histogram
from cifarflow.tracking.tracker import Tracker
from cifarflow.workspace import Workspace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer.record_writer import RecordWriter


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


@pytest.mark.parametrize(
    ("metric", "chart"),
    [
        ("train_loss", "loss/train"),
        ("validation_accuracy", "accuracy/validation"),
        ("learning_rate", "learning_rate"),
        ("images_per_second", "images_per_second"),
    ],
)
def test_the_splits_of_a_quantity_share_a_chart(metric: str, chart: str) -> None:
    assert chart_of(metric) == chart


def test_scalars_pictures_histograms_and_graph_arrive(tmp_path: Path) -> None:
    view = TensorboardView(tmp_path)
    view.scalars({"train_loss": 0.5, "learning_rate": 0.25}, step=4)
    view.pictures("batch", np.full((6, 8, 10, 3), 128, dtype=np.uint8), step=0)
    view.histograms({"weight": torch.arange(4.0)}, step=4)
    view.graph(torch.nn.Linear(3, 2), torch.zeros(1, 3))
    view.close()
    assert scalars(tmp_path, "loss/train") == [(4, 0.5)]
    events = read(tmp_path)
    picture = events.Images("batch")[0]
    assert picture.width >= 6 * 10 and picture.height >= 8
    assert events.Histograms("weight")[0].histogram_value.num == 4
    assert b"Linear" in events.Graph().SerializeToString()


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        (torch.arange(1000.0) / 10 - 30, 1000),
        (torch.full((5,), 0.25), 5),
        (torch.tensor([1.0, float("nan"), float("inf"), 3.0]), 2),
        (torch.tensor([float("nan")]), 0),
        (torch.zeros(0), 0),
    ],
)
def test_a_histogram_counts_every_finite_value_in_its_bin(values: torch.Tensor, finite: int) -> None:
    made = histogram(values)
    limits = np.array(made["bucket_limits"])
    assert sum(made["bucket_counts"]) == made["num"] == finite
    assert len(limits) == len(made["bucket_counts"]) and (np.diff(limits) > 0).all()
    known = values[values.isfinite()].double()
    assert made["sum"] == pytest.approx(known.sum().item())
    if finite == 1000:
        expected, _ = np.histogram(known.numpy(), bins=np.concatenate([[made["min"]], limits]))
        assert np.abs(np.array(made["bucket_counts"]) - expected).max() <= 1, (
            "rounding at an edge may move one"
        )
        assert made["max"] == pytest.approx(limits[-1]) == known.max().item()


def test_a_histogram_of_many_values_is_that_of_some_which_stand_for_all() -> None:
    """Filters whose nine taps have means of their own: each tap has to have its turn."""
    torch.manual_seed(0)
    filters = torch.randn(256, 256, 3, 3) / 4 + torch.arange(9.0).view(3, 3)
    made = histogram(filters.to(memory_format=torch.channels_last))
    counts = np.array(made["bucket_counts"])
    limits = np.concatenate([[made["min"]], made["bucket_limits"]])
    expected, _ = np.histogram(filters.flatten().numpy(), bins=limits)
    assert made["num"] == filters.numel() and counts.sum() == pytest.approx(made["num"])
    assert np.abs(counts - expected).max() < 0.05 * expected.max()
    assert made["max"] == filters.max().item() and made["sum"] == pytest.approx(filters.double().sum().item())


def test_a_resumed_run_shows_every_step_once(tmp_path: Path) -> None:
    killed = TensorboardView(tmp_path)
    for step in range(3):
        killed.scalars({"train_loss": float(step)}, step=step)
    resumed = TensorboardView(tmp_path, goes_on=True)
    for step in range(1, 5):
        resumed.scalars({"train_loss": float(step)}, step=step)
    resumed.close()
    assert scalars(tmp_path, "loss/train") == [(step, float(step)) for step in range(5)]


WITH_TENSORBOARD = TrackingConfig(
    mlflow=MlflowConfig(enabled=False, uri=None, experiment="x", timeout_seconds=1),
    tensorboard=TensorboardConfig(enabled=True, pictures=0, graph=False, histograms=False),
)
EPOCHS = (1, 2, 3, 4)
SLOW_DISK_SECONDS = 0.01
EPOCH_SECONDS = 0.2  # more than the disk needs for the pictures of the start


def reported(workspace: Workspace, epochs: Iterable[int]) -> None:
    """What a training reports from its start, which each process goes through, to its end."""
    key = "a" * 64
    state = PipelineState(identity=RunIdentity(run_key=key, stage_keys={"train": key}), params={}, tags={})
    with open_tracker("train", state, tracking=WITH_TENSORBOARD, workspace=workspace) as tracker:
        for kind in ("before", "augmented"):
            tracker.tensorboard.pictures(f"pictures/{kind}", np.zeros((2, 4, 4, 3), dtype=np.uint8), step=0)
        for epoch in epochs:
            tracker.metrics({"train_loss": 1 / epoch, "seconds": time.monotonic_ns() % 10_000}, step=epoch)
            tracker.tensorboard.histograms({"weights/layer": torch.full((3,), float(epoch))}, step=epoch)


def killed_before(workspace: Workspace, epochs: Sequence[int], *, call: str) -> None:
    """A process that kills itself when `call` comes to the last epoch (0: to the second picture of its start)."""
    owner = Tracker if call == "metrics" else TensorboardView
    usual, write = getattr(owner, call), RecordWriter.write

    def deadly(self: Any, what: Any, *rest: Any, step: int) -> None:
        if what == "pictures/augmented" or step == epochs[-1] > 0:
            time.sleep(EPOCH_SECONDS if call == "metrics" else 0)
            os.kill(os.getpid(), signal.SIGKILL)
        usual(self, what, *rest, step=step)

    def slowly(self: RecordWriter, data: bytes) -> None:
        time.sleep(SLOW_DISK_SECONDS)  # else what nobody flushed would mostly be there by chance
        write(self, data)

    setattr(owner, call, deadly)
    RecordWriter.write = slowly
    reported(workspace, epochs)


def put_before_later_ones(logs: Path) -> None:
    """TensorBoard reads a run's files by name, that is by the second of their start: none of these starts takes one."""
    files = sorted(logs.glob("*/events.*"), key=lambda path: path.stat().st_mtime_ns)
    for number, path in enumerate(files):
        _, rest = path.name.removeprefix("events.out.tfevents.").split(".", 1)
        path.rename(path.with_name(f"events.out.tfevents.{number:010}.{rest}"))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="needs a fork that is safe, which Linux alone has")
@pytest.mark.parametrize(
    ("killed", "call", "goes_on_with"),
    [
        pytest.param([0], "pictures", 1, id="at its start"),
        pytest.param([1], "metrics", 1, id="in its first epoch"),
        pytest.param([1], "scalars", 1, id="first epoch, in the journal only"),
        pytest.param([1, 2, 3], "scalars", 3, id="third epoch, in the journal only"),
        pytest.param([1, 2, 3], "histograms", 3, id="third epoch, its scalars only"),
        pytest.param([1, 2, 3, 4], "scalars", 4, id="third epoch whole, fourth in the journal only"),
        pytest.param([1, 2, 3], "histograms", 2, id="from the checkpoint before"),
        pytest.param([1, 2, 3, 4], "histograms", 1, id="from the first step"),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_killed_run_that_goes_on_shows_every_scalar_histogram_and_picture_once(
    tmp_path: Path, killed: list[int], call: str, goes_on_with: int, times: int
) -> None:
    """A training goes on with an epoch whose calls have all returned, or with an earlier one, never behind that."""
    workspace = Workspace.at(tmp_path, {})
    for first in [1, goes_on_with][:times]:
        epochs = [epoch for epoch in killed if epoch >= first] or killed[-1:]
        process = multiprocessing.get_context("fork").Process(
            target=killed_before, args=(workspace, epochs), kwargs={"call": call}
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        put_before_later_ones(workspace.tensorboard_logs)
    reported(workspace, EPOCHS[goes_on_with - 1 :])
    (folder,) = workspace.tensorboard_logs.iterdir()
    assert [step for step, _ in scalars(folder, "loss/train")] == list(EPOCHS)
    (journal,) = all_journals(workspace)
    first = [event["values"]["seconds"] for event in journal.events() if event["kind"] == "metrics"]
    assert [value for _, value in scalars(folder, "seconds")] == pytest.approx(first), "as in MLflow"
    events = read(folder)
    histograms = [(event.step, event.histogram_value.max) for event in events.Histograms("weights/layer")]
    assert histograms == [(epoch, float(epoch)) for epoch in EPOCHS]
    for kind in ("before", "augmented"):
        assert [event.step for event in events.Images(f"pictures/{kind}")] == [0]


def test_a_training_that_goes_on_behind_a_whole_epoch_hides_nothing_of_it(tmp_path: Path) -> None:
    """As after the checkpoint of a later step: that epoch is not repeated, and its histograms are nowhere else."""
    workspace = Workspace.at(tmp_path, {})
    for epochs in ((1, 2), (), (3, 4)):
        reported(workspace, epochs)
        put_before_later_ones(workspace.tensorboard_logs)
    (folder,) = workspace.tensorboard_logs.iterdir()
    assert [step for step, _ in scalars(folder, "loss/train")] == list(EPOCHS)
    assert [event.step for event in read(folder).Histograms("weights/layer")] == list(EPOCHS)


def test_a_model_that_cannot_be_drawn_costs_one_warning_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    view = TensorboardView(tmp_path)
    with caplog.at_level(logging.WARNING, logger="cifarflow"):
        view.graph(torch.nn.Linear(3, 2), torch.zeros(1, 99))
    assert len(caplog.records) == 1
    view.scalars({"train_loss": 1.0}, step=0)
    view.close()
    assert scalars(tmp_path, "loss/train") == [(0, 1.0)]


def test_a_fault_silences_the_view_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    view = TensorboardView(tmp_path)
    with caplog.at_level(logging.WARNING, logger="cifarflow"):
        for step in range(3):
            view.pictures("batch", np.zeros((2, 5), dtype=np.uint8), step=step)
    view.close()
    assert len(caplog.records) == 1
    assert "training goes on" in caplog.text


def test_a_disk_that_fails_under_way_is_one_warning_and_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorBoard writes in a thread of its own; pytest makes an error of a traceback that a thread ends in."""
    logs = tmp_path / "logs"
    view = TensorboardView(logs)
    view.scalars({"train_loss": 1.0}, step=0)
    shutil.rmtree(logs)
    logs.write_text("")
    with caplog.at_level(logging.WARNING, logger="cifarflow"):
        for step in range(1, 4):
            view.scalars({"train_loss": 1.0}, step=step)
            time.sleep(0.01)
        view.graph(torch.nn.Linear(1, 1), torch.zeros(1, 1))
    view.close()
    assert len(caplog.records) == 1
    assert "TensorBoard stops here, the training goes on" in caplog.text


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, logger="cifarflow"):
        view = TensorboardView(tmp_path / "file" / "logs")
        view.scalars({"train_loss": 1.0}, step=0)
        view.close()
    assert len(caplog.records) == 1


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    view = TensorboardView(None)
    view.scalars({"train_loss": 1.0}, step=0)
    view.pictures("batch", np.zeros((1, 2, 2, 3), dtype=np.uint8), step=0)
    view.graph(torch.nn.Linear(1, 1), torch.zeros(1, 1))
    view.histograms({"weight": torch.zeros(1)}, step=0)
    view.close()
    assert list(tmp_path.iterdir()) == []


def test_a_model_keeps_its_folder_whatever_the_experiment_is_called_that_goes_on_with_it(
    tmp_path: Path,
) -> None:
    """DVC gives each `dvc exp run` another name; two ways to evaluate one model are two curves."""
    workspace = Workspace.at(tmp_path, {})
    for stage, experiment, way, step in (
        ("train", "torn-hart", "b", 1),
        ("train", "male-wigs", "b", 2),
        ("evaluate", "male-wigs", "b", 0),
        ("evaluate", "male-wigs", "c", 0),
    ):
        keys = {"train": "a" * 64, "evaluate": way * 64, "export": "d" * 64}
        state = PipelineState(
            identity=RunIdentity(run_key="a" * 64, stage_keys=keys),
            params={},
            tags={"dvc.experiment": experiment},
        )
        with open_tracker(stage, state, tracking=WITH_TENSORBOARD, workspace=workspace) as tracker:
            tracker.metrics({"train_loss": float(step)}, step=step)
    (folder,) = workspace.tensorboard_logs.iterdir()
    assert folder.name == "torn-hart-" + "a" * 12
    assert scalars(folder, "loss/train") == [(1, 1.0), (2, 2.0)]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "evaluate-bbbbbbbb",
        "evaluate-cccccccc",
    ]
