"""Makes and completes MLflow runs from journals: the one door to mlflow, opened when something is sent.

One pipeline state is one run, found by its tag. Everything here can be done again without harm: MLflow drops
an equal metric, parameters and tags are filled in, files are overwritten, models carry their file's digest.
"""

import glob
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from cifarflow.config.schema import MlflowConfig
from cifarflow.errors import TrackingError, without_passwords
from cifarflow.tracking.identity import PipelineState
from cifarflow.tracking.journal import Event, Journal
from cifarflow.tracking.mlflow_replay import RunReplay, retry_when_locked
from cifarflow.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STATE_TAG = "cifarflow.state_key"
RUN_TAG = "cifarflow.run_key"
SQLITE = "sqlite:///"
LOCK_TIMEOUT_SECONDS = 120


def tracking_uri(config: MlflowConfig, workspace: Workspace, environ: Mapping[str, str]) -> str:
    """Where runs go: params.yaml, then MLFLOW_TRACKING_URI, then a SQLite file at home.

    A relative SQLite path counts from home, because a stage may run in a temporary checkout.
    Raises TrackingError when home's own path cannot be part of an address.
    """
    uri = config.uri or environ.get("MLFLOW_TRACKING_URI") or SQLITE + workspace.mlflow_database.name
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or path.is_absolute():
        return uri
    if "?" in str(workspace.home):
        raise TrackingError(
            f"{workspace.home} has a `?` in its path, where an address of SQLite ends: its runs would lie outside. "
            "Rename that folder, or set tracking.mlflow.uri in params.yaml to a database elsewhere."
        )
    return SQLITE + (workspace.home / path).as_posix()


def database_of(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other.

    Raises TrackingError where no file can be: mlflow would try for minutes, without a word.
    """
    if not uri.startswith(SQLITE):
        return None
    path = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise TrackingError(
            f"{path}, where runs are to go, {what}. Mend tracking.mlflow.uri in params.yaml (or MLFLOW_TRACKING_URI), "
            "or move that folder, then `uv run cifarflow sync`."
        )
    return path


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def prepare_environment(config: MlflowConfig) -> None:
    """Settings that mlflow reads while it is imported; what the user has set stays."""
    settings = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(config.timeout_seconds),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_DISABLE_AGENT_HINT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    # One warning of ours is enough: of a database that is locked, full or read-only mlflow prints a traceback too.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """What bringing one run up to date took."""

    changed: bool
    events_sent: int


@dataclass(frozen=True, slots=True)
class _Followed:
    """A run while its stage goes on, which need not be looked for after each epoch."""

    state: PipelineState
    run: "Run"
    replay: RunReplay


class MlflowTracker:
    """Writes journals into one MLflow store; connects at the first use. Not for use from two threads."""

    def __init__(self, config: MlflowConfig, workspace: Workspace) -> None:
        self.uri = tracking_uri(config, workspace, os.environ)
        self._config = config
        self._workspace = workspace
        self._connected: tuple[MlflowClient, str] | None = None
        self._followed: _Followed | None = None

    def connect(self) -> "tuple[MlflowClient, str]":
        """The client and the id of the experiment, which is made when it is missing.

        Raises TrackingError when the experiment is in MLflow's trash, or the database cannot be where it should.
        """
        if self._connected is None:
            database = database_of(self.uri)
            prepare_environment(self._config)
            from mlflow import MlflowClient

            with self._alone():
                if database is not None:
                    self._make_database(database)
                client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                self._connected = client, retry_when_locked(lambda: self._experiment_id(client))
        return self._connected

    def complete(self, state: PipelineState, journals: Sequence[Journal]) -> Completion:
        """Bring the run of a state up to date with its journals; makes the run when there is none."""
        client, _ = self.connect()
        recorded = [(journal, events) for journal in journals if (events := journal.events())]
        with self._alone():
            known, self._followed = self._followed, None  # after a fault it is looked for anew
            followed, created = known, False
            if followed is None or followed.state != state:
                followed, created = self._follow(state, [event for _, events in recorded for event in events])
            sent = sum(followed.replay.send(journal, events) for journal, events in recorded)
            last_events = [events[-1] for _, events in recorded]
            if retry_when_locked(lambda: _follow_status(client, followed.run, last_events)):
                self._followed = followed
        return Completion(changed=created or sent > 0, events_sent=sent)

    def _follow(self, state: PipelineState, events: Sequence[Event]) -> tuple[_Followed, bool]:
        """The run of a state, with its parameters, and whether it had to be made."""
        client, experiment_id = self.connect()
        found = retry_when_locked(lambda: _find_run(client, experiment_id, state))
        started = _start_of(state, events)
        run = found or retry_when_locked(lambda: _create_run(client, experiment_id, state, started=started))
        replay = RunReplay(client, run, state)
        replay.fill_in(state)
        return _Followed(state, run, replay), found is None

    def _alone(self) -> FileLock:
        """Keeps the processes of this repository apart while one makes the store or completes a run.

        MLflow's own locks are not enough: four first starts at once break each other's migrations, and of two
        that log one dataset at once (a stage and `cifarflow sync`, two experiments) one fails on its key.
        """
        self._workspace.state.mkdir(parents=True, exist_ok=True)
        return FileLock(self._workspace.state / "mlflow.lock", timeout=LOCK_TIMEOUT_SECONDS)

    def _make_database(self, path: Path) -> None:
        """A new SQLite file appears with all tables: killed between two of them, mlflow refuses the file ever after."""
        if path.exists() and path.stat().st_size:
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        making = path.with_name(f".{path.name}.part")
        for left in path.parent.glob(
            f"{glob.escape(making.name)}*"
        ):  # by a kill, with SQLite's journal of it
            left.unlink()
        store = SqlAlchemyStore(SQLITE + making.as_posix(), self._workspace.mlflow_artifacts.as_uri())
        store.engine.dispose()
        if not path.exists() or not path.stat().st_size:  # `mlflow ui` may have been faster
            making.replace(path)
        making.unlink(missing_ok=True)

    def _experiment_id(self, client: "MlflowClient") -> str:
        from mlflow import MlflowException

        name = self._config.experiment
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            # Without a location MLflow takes the current folder, which may be a temporary checkout.
            location = None if is_server(self.uri) else self._workspace.mlflow_artifacts.as_uri()
            try:
                return client.create_experiment(name, artifact_location=location)
            except MlflowException:
                experiment = client.get_experiment_by_name(name)  # another process was faster
                if experiment is None:
                    raise
        if experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"the MLflow experiment {name!r} (params.yaml: tracking.mlflow.experiment) "
                f"at {without_passwords(self.uri)} was deleted. Choose another name, or restore it: "
                f"`uv run mlflow experiments restore -x {experiment.experiment_id}`."
            )
        return experiment.experiment_id


def _start_of(state: PipelineState, events: Sequence[Event]) -> int | None:
    """When a stage first ran in this state: the training may be older and belong to an earlier state as well."""
    own = (e["time"] for e in events if e["kind"] == "start" and e["state_key"] == state.identity.state_key)
    return min(own, default=None)


def _find_run(client: "MlflowClient", experiment_id: str, state: PipelineState) -> "Run | None":
    query = f"tags.`{STATE_TAG}` = '{state.identity.state_key}'"
    runs = client.search_runs([experiment_id], query, order_by=["attributes.start_time ASC"], max_results=1)
    return runs[0] if runs else None


def _create_run(
    client: "MlflowClient", experiment_id: str, state: PipelineState, *, started: int | None
) -> "Run":
    keys = {STATE_TAG: state.identity.state_key, RUN_TAG: state.identity.run_key}
    tags = {**keys, "mlflow.source.name": "cifarflow"}
    return client.create_run(experiment_id, start_time=started, tags=tags, run_name=state.name)


def _follow_status(client: "MlflowClient", run: "Run", last_events: Sequence[Event]) -> bool:
    """The stage that spoke last decides: RUNNING until its status event; FINISHED if none ever spoke.

    Returns whether it is running.
    """
    latest = max(last_events, key=lambda event: event["time"], default=None)
    if latest is not None and latest["kind"] != "status":
        if run.info.status != "RUNNING":  # asked, since after each epoch it is
            client.update_run(run.info.run_id, status="RUNNING")
        return True
    status, end = (latest["status"], latest["time"]) if latest else ("FINISHED", run.info.end_time)
    if (run.info.status, run.info.end_time) != (status, end) or end is None:
        client.set_terminated(run.info.run_id, status, end)
    return False
