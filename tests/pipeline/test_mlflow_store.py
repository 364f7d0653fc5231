"""The MLflow store as users meet it: real SQLite files, a real server, a real `mlflow models serve`."""

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cifarflow.config.schema import MlflowConfig, TensorboardConfig, TrackingConfig
from cifarflow.errors import TrackingError
from cifarflow.tracking import DatasetRecord, PipelineState, RunIdentity, SyncReport, open_tracker, sync
from cifarflow.tracking.journal import all_journals
from cifarflow.tracking.mlflow_tracker import prepare_environment, tracking_uri
from cifarflow.workspace import Workspace

# MLflow 3.17 says these of its own code.
pytestmark = pytest.mark.slow

CLASSES = ["cat", "dog", "frog"]
PARAMS = {"model.name": "tudui", "seed": 1, "model.tudui.hidden": None, "widths": [1, 2], "long": "x" * 7000}
MANY_PARAMS = {f"param.{number}": number for number in range(130)}
DATASET = DatasetRecord(name="shapes", digest="d" * 64, source="generator", counts={"train": 10, "test": 4})


def identity(train: str = "a", evaluate: str = "b", export: str = "c") -> RunIdentity:
    keys = {"train": train * 64, "evaluate": evaluate * 64, "export": export * 64}
    return RunIdentity(run_key=keys["train"], stage_keys=keys)


def tracking(uri: str | None = None, *, timeout_seconds: int = 1) -> TrackingConfig:
    return TrackingConfig(
        mlflow=MlflowConfig(enabled=True, uri=uri, experiment="cifarflow", timeout_seconds=timeout_seconds),
        tensorboard=TensorboardConfig(enabled=False, pictures=0, graph=False, histograms=False),
    )


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: making them takes seconds, so it is done once."""
    home = tmp_path_factory.mktemp("empty")
    prepare_environment(tracking().mlflow)
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{(home / 'mlflow.db').as_posix()}").search_experiments()
    return home / "mlflow.db"


@pytest.fixture
def workspace(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    return make_workspace(tmp_path / "home", empty_store)


def make_workspace(home: Path, empty_store: Path) -> Workspace:
    """As under `dvc exp run --temp`: the stage works in another folder than the repository."""
    workspace = Workspace(root=home / "temporary", home=home)
    workspace.root.mkdir(parents=True)
    shutil.copyfile(empty_store, workspace.mlflow_database)
    return workspace


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images uint8 [N, H, W, 3] -> the softmax of each picture's mean colour."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Softmax", ["means"], ["probabilities"], axis=1),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", 3])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph(nodes, "tiny", [images], [probabilities])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def train(
    workspace: Workspace,
    key: RunIdentity,
    *,
    config: TrackingConfig | None = None,
    epochs: range = range(3),
    tags: dict[str, str] | None = None,
) -> float:
    """Three epochs and an artifact; returns the longest time in seconds that one call took."""
    longest = 0.0
    with open_tracker(
        "train",
        PipelineState(
            identity=key,
            params={**PARAMS, **MANY_PARAMS},
            tags=tags or {"git.commit": "0" * 40},
            dataset=DATASET,
        ),
        tracking=config or tracking(),
        workspace=workspace,
    ) as tracker:
        for epoch in epochs:
            began = time.perf_counter()
            tracker.metrics({"train_loss": 1 / (epoch + 3), "train_accuracy": epoch / 10}, step=epoch)
            longest = max(longest, time.perf_counter() - began)
        with tempfile.TemporaryDirectory(dir=workspace.root) as temporary:
            curve = Path(temporary) / "curve.csv"
            curve.write_text("epoch,loss\n")
            tracker.artifact(curve, folder="plots")
    return longest


def evaluate(workspace: Workspace, key: RunIdentity, *, params: dict[str, Any] | None = None) -> None:
    with open_tracker(
        "evaluate",
        PipelineState(identity=key, params={**PARAMS, **(params or {})}, tags={"device": "cpu"}),
        tracking=tracking(),
        workspace=workspace,
    ) as tracker:
        tracker.metrics({"test_accuracy": 0.94}, step=0)


def export(
    workspace: Workspace, key: RunIdentity, path: Path, *, config: TrackingConfig | None = None
) -> None:
    with open_tracker(
        "export",
        PipelineState(identity=key, params=PARAMS, tags={}),
        tracking=config or tracking(),
        workspace=workspace,
    ) as tracker:
        tracker.metrics({"export_agreement": 1.0}, step=0)
        tracker.onnx_model(path, image_size=32, classes=CLASSES)


class Store:
    """Reads a store through MLflow's own client."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    @classmethod
    def of(cls, workspace: Workspace) -> "Store":
        return cls(f"sqlite:///{workspace.mlflow_database.as_posix()}")

    @property
    def experiment(self) -> Any:
        return self.client.get_experiment_by_name("cifarflow")

    def runs(self) -> list[Any]:
        return self.client.search_runs(
            [self.experiment.experiment_id], order_by=["attributes.start_time ASC"]
        )

    def run(self) -> Any:
        (run,) = self.runs()
        return run

    def history(self, run: Any, metric: str) -> list[tuple[int, float]]:
        return [
            (point.step, point.value) for point in self.client.get_metric_history(run.info.run_id, metric)
        ]

    def artifacts(self, run: Any, folder: str | None = None) -> list[str]:
        return sorted(file.path for file in self.client.list_artifacts(run.info.run_id, folder))

    def models(self) -> list[Any]:
        return list(self.client.search_logged_models([self.experiment.experiment_id]))

    def content(self, run: Any) -> dict[str, Any]:
        """All that is the same for two runs of one state, wherever and whenever they were written."""
        return {
            "params": run.data.params,
            "tags": run.data.tags,
            "metrics": {name: self.history(run, name) for name in run.data.metrics},
            "artifacts": self.artifacts(run, "plots"),
            "datasets": [used.dataset.digest for used in run.inputs.dataset_inputs],
            "models": len(run.outputs.model_outputs) if run.outputs else 0,
            "status": run.info.status,
        }


def test_everything_that_a_stage_reports_arrives(workspace: Workspace) -> None:
    train(workspace, identity())
    store = Store.of(workspace)
    run = store.run()
    assert store.history(run, "train_loss") == [(0, 1 / 3), (1, 1 / 4), (2, 1 / 5)]
    assert run.data.params["model.tudui.hidden"] == "null"
    assert run.data.params["widths"] == "[1, 2]"
    assert len(run.data.params["long"]) == 6000
    assert len(run.data.params) == len(PARAMS) + len(MANY_PARAMS)
    assert run.data.tags["git.commit"] == "0" * 40
    assert run.data.tags["cifarflow.run_key"] == "a" * 64
    assert run.data.tags["cifarflow.state_key"] == identity().state_key
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, json.loads(used.dataset.profile)) == ("shapes", {"train": 10, "test": 4})
    assert store.artifacts(run, "plots") == ["plots/curve.csv"]
    assert run.info.status == "FINISHED"
    assert run.info.end_time >= run.info.start_time
    assert store.experiment.artifact_location == workspace.mlflow_artifacts.as_uri()
    assert not list(workspace.root.rglob("*")), (
        "a stage in a temporary checkout left something of MLflow there"
    )


def test_the_stages_of_one_state_share_one_run(workspace: Workspace, onnx_file: Path) -> None:
    train(workspace, identity())
    evaluate(workspace, identity())
    export(workspace, identity(), onnx_file)
    run = Store.of(workspace).run()
    assert {"train_loss", "test_accuracy", "export_agreement"} <= set(run.data.metrics)
    assert run.data.tags["device"] == "cpu"
    assert len(run.outputs.model_outputs) == 1


def test_a_changed_evaluation_gets_a_run_that_holds_the_training_and_export_too(
    workspace: Workspace, onnx_file: Path
) -> None:
    train(workspace, identity())
    evaluate(workspace, identity(), params={"evaluate.flip": False})
    export(workspace, identity(), onnx_file)
    evaluate(workspace, identity(evaluate="e"), params={"evaluate.flip": True})
    store = Store.of(workspace)
    first, second = store.runs()[:2]
    if first.data.params["evaluate.flip"] == "true":
        first, second = second, first
    assert (first.data.params["evaluate.flip"], second.data.params["evaluate.flip"]) == ("false", "true")
    assert store.content(first)["metrics"] == store.content(second)["metrics"]
    assert store.artifacts(second, "plots") == ["plots/curve.csv"]
    assert len(second.outputs.model_outputs) == 1
    assert second.info.status == "FINISHED"


def test_a_killed_training_goes_on_in_the_same_run_without_doubling(workspace: Workspace) -> None:
    train(workspace, identity(), epochs=range(0, 3))
    train(workspace, identity(), epochs=range(1, 5))
    store = Store.of(workspace)
    assert store.history(store.run(), "train_accuracy") == [(step, step / 10) for step in range(5)]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_the_run_tells_how_its_stage_ended(
    workspace: Workspace, error: type[BaseException], status: str
) -> None:
    config = tracking()
    with (
        pytest.raises(error),
        open_tracker(
            "train",
            PipelineState(identity=identity(), params={}, tags={}),
            tracking=config,
            workspace=workspace,
        ) as tracker,
    ):
        tracker.metrics({"train_loss": 1.0}, step=0)
        raise error
    store = Store.of(workspace)
    assert store.run().info.status == status
    train(workspace, identity())
    assert store.run().info.status == "FINISHED"


def test_a_run_says_running_while_its_stage_runs(workspace: Workspace) -> None:
    train(workspace, identity())
    with open_tracker(
        "evaluate",
        PipelineState(identity=identity(), params={}, tags={}),
        tracking=tracking(),
        workspace=workspace,
    ) as tracker:
        tracker.metrics({"test_accuracy": 0.5}, step=0)
        store = Store.of(workspace)
        wait_for(lambda: store.run().info.status == "RUNNING" and "test_accuracy" in store.run().data.metrics)
    assert store.run().info.status == "FINISHED"


def test_a_second_process_on_the_same_record_is_refused_and_the_first_goes_on(workspace: Workspace) -> None:
    state = PipelineState(identity=identity(), params={}, tags={})
    config = tracking()
    with open_tracker("train", state, tracking=config, workspace=workspace) as tracker:
        tracker.metrics({"train_loss": 1.0}, step=0)
        with (
            pytest.raises(TrackingError, match=r"another process runs train .*Wait until it is done"),
            open_tracker("train", state, tracking=config, workspace=workspace),
        ):
            pass
        tracker.metrics({"train_loss": 0.5}, step=1)
    with open_tracker("train", state, tracking=config, workspace=workspace) as tracker:
        tracker.metrics({"train_loss": 0.25}, step=2)
    (journal,) = all_journals(workspace)
    steps = [event["step"] for event in journal.events() if event["kind"] == "metrics"]
    assert steps == [0, 1, 2]


def test_sync_twice_changes_nothing(workspace: Workspace, onnx_file: Path) -> None:
    train(workspace, identity())
    export(workspace, identity(), onnx_file)
    store = Store.of(workspace)
    before = store.content(store.run())
    for journal in all_journals(workspace):  # as if the acknowledgement had been lost in a kill
        (journal.folder / "mlflow.json").unlink()
    report = sync(workspace, tracking())
    assert (report.runs_completed, report.failures) == (1, ())
    assert store.content(store.run()) == before
    assert len(store.models()) == 1
    assert sync(workspace, tracking()) == SyncReport(runs_completed=0, events_sent=0, failures=())


def test_sync_rebuilds_a_deleted_store(workspace: Workspace, onnx_file: Path, empty_store: Path) -> None:
    train(workspace, identity())
    export(workspace, identity(), onnx_file)
    store = Store.of(workspace)
    before = store.content(store.run())
    store.client.delete_run(store.run().info.run_id)
    assert sync(workspace, tracking()).runs_completed == 1
    assert store.content(store.run()) == before


def test_sync_makes_the_run_of_a_state_that_came_out_of_the_cache(
    workspace: Workspace, onnx_file: Path
) -> None:
    train(workspace, identity())
    evaluate(workspace, identity())
    evaluate(workspace, identity(evaluate="e"))
    export(workspace, identity(evaluate="e"), onnx_file)
    current = PipelineState(identity=identity(export="f"), params=PARAMS, tags={})
    report = sync(workspace, tracking(), current=current)
    assert report.failures == ()
    store = Store.of(workspace)
    states = {run.data.tags["cifarflow.state_key"]: run for run in store.runs()}
    assert len(states) == len(store.runs()) == 3
    restored = states[current.identity.state_key]
    assert set(restored.data.metrics) == {"train_loss", "train_accuracy", "test_accuracy"}
    assert restored.info.status == "FINISHED"
    assert "export_agreement" in states[identity().state_key].data.metrics, "exported under the other state"


def test_experiments_side_by_side_all_arrive(workspace: Workspace) -> None:
    faults: list[BaseException] = []

    def experiment(key: str) -> None:
        try:
            for epochs in (range(0, 5), range(5, 10)):
                train(workspace, identity(train=key), epochs=epochs, config=tracking(timeout_seconds=60))
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=experiment, args=(key,)) for key in "0123"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    store = Store.of(workspace)
    assert len(store.runs()) == 4
    for run in store.runs():
        assert [step for step, _ in store.history(run, "train_loss")] == list(range(10))


def test_a_deleted_experiment_is_named_with_the_way_back(workspace: Workspace) -> None:
    train(workspace, identity())
    store = Store.of(workspace)
    store.client.delete_experiment(store.experiment.experiment_id)
    (failure,) = sync(workspace, tracking()).failures
    assert "restore" in failure and "tracking.mlflow.experiment" in failure


def test_tracking_that_is_off_leaves_a_journal_and_no_store(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, home=tmp_path)
    config = tracking()
    off = config.model_copy(update={"mlflow": config.mlflow.model_copy(update={"enabled": False})})
    train(workspace, identity(), config=off)
    assert len(all_journals(workspace)) == 1
    assert not workspace.mlflow_database.exists()
    with pytest.raises(TrackingError, match=r"tracking\.mlflow\.enabled"):
        sync(workspace, off)


@pytest.mark.parametrize(
    ("configured", "environ", "expected"),
    [
        (None, {}, "sqlite:////home/mlflow.db"),
        (None, {"MLFLOW_TRACKING_URI": "http://team:5000"}, "http://team:5000"),
        ("http://mine:5000", {"MLFLOW_TRACKING_URI": "http://team:5000"}, "http://mine:5000"),
        ("sqlite:///runs/mine.db", {}, "sqlite:////home/runs/mine.db"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="the expected paths are POSIX ones")
def test_where_runs_go(configured: str | None, environ: dict[str, str], expected: str) -> None:
    workspace = Workspace(root=Path("/temporary"), home=Path("/home"))
    assert tracking_uri(tracking(configured).mlflow, workspace, environ) == expected


def test_a_server_that_never_answers_slows_nothing(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, caplog.at_level(logging.WARNING, "cifarflow"):
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.perf_counter()
        assert train(workspace, identity(), config=tracking(uri)) < 0.05
        assert time.perf_counter() - began < 5
    assert "uv run cifarflow sync" in caplog.text
    sync(workspace, tracking())
    assert Store.of(workspace).run().info.status == "FINISHED"


def test_a_run_whose_server_was_down_is_completed_later_to_the_same_run(
    workspace: Workspace,
    tmp_path: Path,
    empty_store: Path,
    onnx_file: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    untroubled = make_workspace(tmp_path / "untroubled", empty_store)
    train(untroubled, identity())
    export(untroubled, identity(), onnx_file)
    port = free_port()
    config = tracking(f"http://127.0.0.1:{port}", timeout_seconds=20)
    with caplog.at_level(logging.WARNING, "cifarflow"):
        assert train(workspace, identity(), config=config) < 0.05
    assert caplog.text.count("cannot be reached") == 1
    with mlflow_server(port, tmp_path / "server", empty_store):
        assert sync(workspace, config).failures == ()
        export(workspace, identity(), onnx_file, config=config)
        store = Store(f"http://127.0.0.1:{port}")
        expected = Store.of(untroubled)
        assert store.content(store.run()) == expected.content(expected.run())
        assert store.experiment.artifact_location.startswith("mlflow-artifacts:")


def test_the_exported_model_loads_and_serves(workspace: Workspace, onnx_file: Path) -> None:
    export(workspace, identity(), onnx_file)
    from mlflow import pyfunc

    store = Store.of(workspace)
    (logged,) = store.models()
    folder = Path(url2pathname(logged.artifact_location.removeprefix("file://")))
    port = free_port()
    command = [
        "models",
        "serve",
        "-m",
        str(folder),
        "--env-manager",
        "local",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    with mlflow_process([*command, "--workers", "1"], f"http://127.0.0.1:{port}/ping"):
        model = pyfunc.load_model(str(folder))
        assert model.metadata.metadata == {"classes": CLASSES, "image_size": 32}
        images = np.zeros((4, 8, 9, 3), dtype=np.uint8)
        images[:, :, :, 2] = 9
        for batch in (images[:1], images):
            probabilities = model.predict(batch)["probabilities"]
            assert probabilities.shape == (len(batch), 3)
            np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
            assert (probabilities.argmax(axis=1) == 2).all()
            served = post(f"http://127.0.0.1:{port}/invocations", {"inputs": batch.tolist()})
            np.testing.assert_allclose(served["predictions"]["probabilities"], probabilities, rtol=1e-5)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def post(url: str, content: Any) -> Any:
    body = json.dumps(content).encode()
    request = urllib.request.Request(url, body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def mlflow_server(port: int, folder: Path, empty_store: Path) -> contextlib.AbstractContextManager[None]:
    folder.mkdir()
    shutil.copyfile(empty_store, folder / "mlflow.db")
    store = ["--backend-store-uri", f"sqlite:///{(folder / 'mlflow.db').as_posix()}"]
    artifacts = ["--artifacts-destination", (folder / "artifacts").as_uri()]
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return mlflow_process(["server", *store, *artifacts, *address], f"http://127.0.0.1:{port}/health")


@contextlib.contextmanager
def mlflow_process(command: list[str], health: str) -> Iterator[None]:
    """A running `mlflow ...` that answers at `health`; it and its workers are ended afterwards."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # as `uv run` sets it
    quick = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **quick, "PATH": programs},
        start_new_session=True,
    )

    def answers() -> bool:
        assert process.poll() is None, f"mlflow ended with {process.returncode}"
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(health, timeout=5).close()
            return True
        return False

    try:
        wait_for(answers)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)
