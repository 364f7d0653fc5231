"""Sends a journal into one MLflow run: a part of mlflow_tracker.py, which alone uses it."""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cifarflow.tracking.identity import DatasetRecord, PipelineState
from cifarflow.tracking.journal import Event, Journal
from cifarflow.tracking.mlflow_model import log_onnx_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Run

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Limits of MLflow's API.
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
LONGEST_METRIC = 250
NOT_IN_METRIC = re.compile(r"[^/\w.\- ]")
LONGEST_PARAM = 6000
LONGEST_TAG = 8000
LONGEST_DIGEST = 36

LOCKED_ATTEMPTS = 5


class RunReplay:
    """Sends the events that one run doesn't hold yet."""

    def __init__(self, client: "MlflowClient", run: "Run", state: PipelineState) -> None:
        self._client = client
        self._run_id = run.info.run_id
        self._experiment_id = run.info.experiment_id
        self._state = state
        self._params = set(run.data.params)
        self._tags = dict(run.data.tags)
        self._datasets = {used.dataset.name for used in run.inputs.dataset_inputs} if run.inputs else set()

    def send(self, journal: Journal, events: Sequence[Event]) -> int:
        """Returns how many events were new; each group is acknowledged as soon as MLflow has it."""
        done = first = journal.acknowledged(self._run_id)
        for kind, group in groupby(events[first:], key=lambda event: event["kind"]):
            batch = list(group)
            retry_when_locked(lambda kind=kind, batch=batch: self._send_group(kind, batch, journal))
            done += len(batch)
            journal.acknowledge(self._run_id, done)
        return done - first

    def _send_group(self, kind: str, events: Sequence[Event], journal: Journal) -> None:
        if kind == "metrics":
            self._send_metrics(events)
        elif kind == "start":
            for event in events:
                self.fill_in(PipelineState.from_event(event))
        elif kind in ("artifact", "onnx_model"):
            for event in events:
                self._send_file(event, journal.file(event))

    def _send_metrics(self, events: Sequence[Event]) -> None:
        from mlflow.entities import Metric

        metrics = (
            Metric(metric_name(name), value, event["time"], event["step"])
            for event in events
            for name, value in event["values"].items()
        )
        for batch in _batches(metrics, METRICS_PER_CALL):
            self._client.log_batch(self._run_id, metrics=batch)

    def fill_in(self, started: PipelineState) -> None:
        """Log the parameters, tags and data of a state; those of another state only fill gaps.

        MLflow's parameters are final, so one that the run has already is never sent again.
        """
        from mlflow.entities import Param, RunTag

        own = started.identity.state_key == self._state.identity.state_key
        params = {name: value for name, value in started.params.items() if name not in self._params}
        tags = {
            name: value
            for name, value in started.tags.items()
            if name not in self._tags or (own and self._tags[name] != value)
        }
        for batch in _batches(params.items(), PARAMS_PER_CALL):
            self._client.log_batch(
                self._run_id, params=[Param(name, _param_text(value)) for name, value in batch]
            )
        for batch in _batches(tags.items(), PARAMS_PER_CALL):
            self._client.log_batch(
                self._run_id, tags=[RunTag(name, value[:LONGEST_TAG]) for name, value in batch]
            )
        if started.dataset is not None and started.dataset.name not in self._datasets:
            self._client.log_inputs(self._run_id, datasets=[_dataset_input(started.dataset)])
            self._datasets.add(started.dataset.name)
        self._params |= set(params)
        self._tags |= tags

    def _send_file(self, event: Event, path: Path) -> None:
        if not path.exists():
            logger.warning("%s was deleted; MLflow run %s will lack it.", path, self._run_id)
        elif event["kind"] == "artifact":
            self._client.log_artifact(self._run_id, str(path), event["folder"] or None)
        else:
            log_onnx_model(self._client, self._experiment_id, self._run_id, event=event, path=path)


def metric_name(name: str) -> str:
    """The name of a metric as MLflow takes it: it refuses `test_per_class.cats & dogs.recall`, and all that follows.

    Names that had to change end in a part of their digest, so that those of two classes stay two.
    """
    taken = NOT_IN_METRIC.sub("_", name)
    if taken == name and len(name) <= LONGEST_METRIC:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{taken[: LONGEST_METRIC - len(digest) - 1]} {digest}"


def retry_when_locked(action: Callable[[], T]) -> T:
    """SQLite lets one process write at a time; when experiments run side by side, wait and try again."""
    for attempt in range(1, LOCKED_ATTEMPTS):
        try:
            return action()
        except Exception as error:
            if "database is locked" not in str(error):
                raise
            time.sleep(attempt)
    return action()


def _dataset_input(record: DatasetRecord) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=record.name,
        digest=record.digest[:LONGEST_DIGEST],
        source_type="cifarflow",
        source=json.dumps({"uri": record.source}),
        profile=json.dumps(dict(record.counts)),
    )
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "training")])


def _param_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:LONGEST_PARAM]


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
