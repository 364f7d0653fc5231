"""The stages as the trackers see them, and MLflow stores to send them to: SQLite files and a real server."""

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
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cifarflow.config import read_yaml
from cifarflow.config.schema import MlflowConfig, TensorboardConfig, TrackingConfig
from cifarflow.files import sha256_of_file
from cifarflow.tracking import DatasetRecord, PipelineState, RunIdentity, open_tracker
from cifarflow.tracking.journal import journals_of
from cifarflow.workspace import Workspace

CLASSES = ["cat", "dog", "frog"]
PARAMS = {"model.name": "tudui", "seed": 1, "model.tudui.hidden": None, "widths": [1, 2], "long": "x" * 7000}
MANY_PARAMS = {f"param.{number}": number for number in range(130)}
OF_ONE_COPY = ("artifact_path", "model_id", "model_uuid", "run_id", "utc_time_created")
"""What a file MLmodel says of where and when it was written."""
DATASET = DatasetRecord(name="shapes", digest="d" * 64, source="generator", counts={"train": 10, "test": 4})


def identity(train: str = "a", evaluate: str = "b", export: str = "c") -> RunIdentity:
    keys = {"train": train * 64, "evaluate": evaluate * 64, "export": export * 64}
    return RunIdentity(run_key=keys["train"], stage_keys=keys)


def tracking(uri: str | None = None, *, timeout_seconds: int = 1, enabled: bool = True) -> TrackingConfig:
    return TrackingConfig(
        mlflow=MlflowConfig(
            enabled=enabled, uri=uri, experiment="cifarflow", timeout_seconds=timeout_seconds
        ),
        tensorboard=TensorboardConfig(enabled=False, pictures=0, graph=False, histograms=False),
    )


def make_workspace(home: Path, empty_store: Path) -> Workspace:
    """As under `dvc exp run --temp`: the stage works in another folder than the repository."""
    workspace = Workspace(root=home / "temporary", home=home)
    workspace.root.mkdir(parents=True)
    shutil.copyfile(empty_store, workspace.mlflow_database)
    return workspace


def train(
    workspace: Workspace,
    key: RunIdentity,
    *,
    config: TrackingConfig | None = None,
    epochs: Iterable[int] = range(3),
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


def evaluate(
    workspace: Workspace,
    key: RunIdentity,
    *,
    params: dict[str, Any] | None = None,
    metrics: dict[str, float] | None = None,
) -> None:
    with open_tracker(
        "evaluate",
        PipelineState(identity=key, params={**PARAMS, **(params or {})}, tags={"device": "cpu"}),
        tracking=tracking(),
        workspace=workspace,
    ) as tracker:
        tracker.metrics({"test_accuracy": 0.94, **(metrics or {})}, step=0)


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
        with tempfile.TemporaryDirectory(dir=workspace.root) as temporary:
            card = Path(temporary) / "MODEL_CARD.md"
            card.write_text("# tudui\n")
            tracker.artifact(card, folder="export")
        tracker.onnx_model(path, image_size=32, classes=CLASSES)


@contextlib.contextmanager
def warnings_heard() -> Iterator[list[str]]:
    """What this process is warned of meanwhile; not that it waits, as it may have to on a busy machine."""
    heard: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: heard.append(record.getMessage())
    listener.addFilter(lambda record: "Waiting up to" not in record.getMessage())
    logger = logging.getLogger("cifarflow")
    logger.addHandler(listener)
    try:
        yield heard
    finally:
        logger.removeHandler(listener)


def recorded(workspace: Workspace, key: RunIdentity) -> dict[str, Any]:
    """What `Store.reported` has to say of the run of a state, by the journals of its stages."""
    events = [event for journal in journals_of(workspace, key.stage_keys) for event in journal.events()]
    metrics: dict[str, list[tuple[int, int, float]]] = {}
    for event in (event for event in events if event["kind"] == "metrics"):
        for name, value in event["values"].items():
            metrics.setdefault(name, []).append((event["step"], event["time"], value))
    return {
        "start": min(event["time"] for event in events if event["kind"] == "start"),
        "end": max(event["time"] for event in events if event["kind"] == "status"),
        "metrics": metrics,
        "artifacts": {event["file"]: event["sha256"] for event in events if event["kind"] == "artifact"},
    }


class Store:
    """Reads a store through MLflow's own client."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self.uri = uri
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    @classmethod
    def of(cls, workspace: Workspace) -> "Store":
        return cls(f"sqlite:///{workspace.mlflow_database.as_posix()}")

    @classmethod
    def copied_from(cls, workspace: Workspace) -> "Store":
        """For a database that may take another's place: MLflow goes on reading the one that it opened first."""
        copy = workspace.root.parent / f"{uuid.uuid4()}.db"
        shutil.copy(workspace.mlflow_database, copy)
        return cls(f"sqlite:///{copy.as_posix()}")

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
        models = run.outputs.model_outputs if run.outputs else []
        with self.downloaded(run.info.artifact_uri) as folder:
            artifacts = digests(folder)
        return {
            "params": run.data.params,
            "tags": run.data.tags,
            "metrics": {name: self.history(run, name) for name in run.data.metrics},
            "artifacts": artifacts,
            "datasets": [used.to_dictionary() for used in run.inputs.dataset_inputs],
            "models": [self.model(output.model_id) for output in models],
            "status": run.info.status,
        }

    def reported(self, run: Any) -> dict[str, Any]:
        """What stages reported and when, in milliseconds: start and end, each metric's points, the files."""
        points = {name: self.client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        with self.downloaded(run.info.artifact_uri) as folder:
            artifacts = digests(folder)
        return {
            "start": run.info.start_time,
            "end": run.info.end_time,
            "metrics": {
                name: sorted((point.step, point.timestamp, point.value) for point in found)
                for name, found in points.items()
            },
            "artifacts": artifacts,
        }

    def model(self, model_id: str) -> dict[str, Any]:
        """What a logged model says of itself, and the digest of each of its other files."""
        logged = self.client.get_logged_model(model_id)
        with self.downloaded(logged.artifact_location) as folder:
            says = read_yaml(folder / "MLmodel")
            return {
                "status": str(logged.status),
                "tags": logged.tags,
                "says": {name: value for name, value in says.items() if name not in OF_ONE_COPY},
                "files": {name: digest for name, digest in digests(folder).items() if name != "MLmodel"},
            }

    @contextlib.contextmanager
    def downloaded(self, address: str) -> Iterator[Path]:
        """A copy of all that lies at the address of a run's files, or of a model's."""
        from mlflow.artifacts import download_artifacts

        with tempfile.TemporaryDirectory() as folder:
            yield Path(download_artifacts(artifact_uri=address, dst_path=folder, tracking_uri=self.uri))


def digests(folder: Path) -> dict[str, str]:
    """The digest of every file below a folder by its path in it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in found}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def mlflow_server(
    port: int, folder: Path, empty_store: Path
) -> contextlib.AbstractContextManager["subprocess.Popen[bytes]"]:
    """A server on what `folder` holds; a new folder gets an empty store."""
    if not folder.exists():
        folder.mkdir()
        shutil.copyfile(empty_store, folder / "mlflow.db")
    store = ["--backend-store-uri", f"sqlite:///{(folder / 'mlflow.db').as_posix()}"]
    artifacts = ["--artifacts-destination", (folder / "artifacts").as_uri()]
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return mlflow_process(["server", *store, *artifacts, *address], f"http://127.0.0.1:{port}/health")


@contextlib.contextmanager
def mlflow_ui(workspace: Workspace) -> Iterator[str]:
    """The address of an `mlflow ui` on the store of `workspace`."""
    port = free_port()
    store = ["--backend-store-uri", f"sqlite:///{workspace.mlflow_database.as_posix()}"]
    address = f"http://127.0.0.1:{port}"
    command = ["ui", *store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with mlflow_process(command, f"{address}/health"):
        yield address


def shown(address: str) -> dict[str, str]:
    """The status of every run that the UI would list; raises where it answers with an error."""
    api = f"{address}/ajax-api/2.0/mlflow"
    experiments = post(f"{api}/experiments/search", {"max_results": 10})["experiments"]
    ids = [experiment["experiment_id"] for experiment in experiments]
    runs = post(f"{api}/runs/search", {"experiment_ids": ids}).get("runs", [])
    return {run["info"]["run_id"]: run["info"]["status"] for run in runs}


def post(url: str, content: Any) -> Any:
    """What a server answers to JSON."""
    body = json.dumps(content).encode()
    request = urllib.request.Request(url, body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


@contextlib.contextmanager
def mlflow_process(command: list[str], health: str) -> "Iterator[subprocess.Popen[bytes]]":
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
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)
