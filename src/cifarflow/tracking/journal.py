"""The record that a stage keeps of itself: append-only, on disk before anything else hears of it.

A journal is a folder: `events.jsonl` (one event a line), `artifacts/` (copies of what was logged, so that
they outlive a temporary checkout) and `mlflow.json` (how many events each MLflow run has). Trackers
are fed from it.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifarflow.errors import DataIntegrityError
from cifarflow.files import atomic_open, naming, read_json, sha256_of_file, write_json
from cifarflow.tracking.identity import PipelineState
from cifarflow.workspace import Workspace

Event = dict[str, Any]
KEY_LENGTH = 16
FIELDS = {
    "start": {"stage", "state_key", "run_key", "stage_keys", "params", "tags", "dataset"},
    "metrics": {"step", "values"},
    "artifact": {"folder", "file", "sha256"},
    "onnx_model": {"image_size", "classes", "file", "sha256"},
    "status": {"status"},
}
"""What an event of each kind holds, beside its time."""


def journal_of(workspace: Workspace, stage: str, key: str) -> "Journal":
    """The journal of one stage under one key; it may not exist yet."""
    return Journal(workspace.journals / f"{stage}-{key[:KEY_LENGTH]}")


def journals_of(workspace: Workspace, stage_keys: Mapping[str, str]) -> list["Journal"]:
    """The existing journals of a pipeline state, in the order of its stages."""
    found = (journal_of(workspace, stage, key) for stage, key in stage_keys.items())
    return [journal for journal in found if journal.exists()]


def all_journals(workspace: Workspace) -> list["Journal"]:
    return [Journal(path.parent) for path in sorted(workspace.journals.glob("*/events.jsonl"))]


class Journal:
    """Reads a journal and keeps its acknowledgements; safe beside a process that is writing it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "events.jsonl"
        self._acknowledgements = folder / "mlflow.json"

    def exists(self) -> bool:
        return self.path.exists()

    def file(self, event: Event) -> Path:
        """The journal's copy of the file that an event speaks of."""
        return self.folder / "artifacts" / event["file"]

    def events(self) -> list[Event]:
        """All whole events; a last line that was cut by a kill does not count.

        Raises DataIntegrityError for any other line that is no event. It is not passed over: MLflow's runs hold the
        first so many events, by number.
        """
        if not self.exists():
            return []
        content = self.path.read_bytes()
        lines = content[: _whole_length(content)].split(b"\n")[:-1]
        return [self._event(line, number=number) for number, line in enumerate(lines, 1)]

    def _event(self, line: bytes, *, number: int) -> Event:
        try:
            event = json.loads(line)
            if isinstance(event["time"], int) and FIELDS[event["kind"]] <= event.keys():
                return event
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            pass
        raise DataIntegrityError(
            f"{self.path}: line {number} is not an event: the file was damaged. Move the folder {self.folder} away and "
            "run the same command again: MLflow keeps what it has, and `uv run cifarflow sync` adds what files tell."
        )

    @property
    def is_finished(self) -> bool:
        """Whether its stage came to its end; one that was killed or failed may still be gone on with."""
        events = self.events()
        return bool(events) and events[-1]["kind"] == "status" and events[-1]["status"] == "FINISHED"

    def acknowledged(self, run_id: str) -> int:
        """How many events, from the first on, that MLflow run holds."""
        return self._read_acknowledgements().get(run_id, 0)

    def acknowledge(self, run_id: str, count: int) -> None:
        write_json(self._acknowledgements, {**self._read_acknowledgements(), run_id: count})

    def _read_acknowledgements(self) -> dict[str, int]:
        return read_json(self._acknowledgements) if self._acknowledgements.exists() else {}


class JournalWriter:
    """Appends events, each on disk when the call returns; what the journal has is not written again.

    Results under one key are equal, so a stage that was killed and goes on (or is run again) repeats itself
    exactly: the first record of a (metric, step) stays.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        journal.folder.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(journal.path)
        self._seen: set[tuple[str, int]] = set()
        self._files: dict[str, Event] = {}
        for event in journal.events():
            self._remember(event)
        self._stream = journal.path.open("ab")

    @property
    def last_step(self) -> int | None:
        """The highest step that has metrics."""
        return max((step for _, step in self._seen), default=None)

    def values_at(self, step: int) -> dict[str, float]:
        events = (
            event for event in self.journal.events() if event["kind"] == "metrics" and event["step"] == step
        )
        return {name: value for event in events for name, value in event["values"].items()}

    def start(self, state: PipelineState, *, stage: str) -> None:
        self._append({"kind": "start", "stage": stage, **state.to_event()})

    def metrics(self, values: Mapping[str, float], *, step: int) -> dict[str, float]:
        """Returns those of the values that are new."""
        new = {name: float(value) for name, value in values.items() if (name, step) not in self._seen}
        if new:
            self._append({"kind": "metrics", "step": step, "values": new})
        return new

    def artifact(self, path: Path, *, folder: str) -> None:
        self._append_file({"kind": "artifact", "folder": folder}, path, folder=folder)

    def onnx_model(self, path: Path, *, image_size: int, classes: Sequence[str]) -> None:
        self._append_file(
            {"kind": "onnx_model", "image_size": image_size, "classes": list(classes)}, path, folder=""
        )

    def status(self, status: str) -> None:
        self._append({"kind": "status", "status": status})

    def close(self) -> None:
        with naming(self.journal.path):  # it writes once more what a full disk did not take
            self._stream.close()

    def _append_file(self, event: Event, path: Path, *, folder: str) -> None:
        event = {**event, "file": (Path(folder) / path.name).as_posix(), "sha256": sha256_of_file(path)}
        copy = self.journal.file(event)
        if self._files.get(event["file"]) == event and copy.exists():
            return
        with path.open("rb") as source, atomic_open(copy) as target:
            shutil.copyfileobj(source, target)
        self._append(event)

    def _append(self, event: Event) -> None:
        line = json.dumps({"time": time.time_ns() // 1_000_000, **event}, ensure_ascii=False) + "\n"
        with naming(self.journal.path):
            self._stream.write(line.encode())
            self._stream.flush()
            os.fsync(self._stream.fileno())
        self._remember(event)

    def _remember(self, event: Event) -> None:
        if event["kind"] == "metrics":
            self._seen.update((name, event["step"]) for name in event["values"])
        elif "file" in event:
            self._files[event["file"]] = {name: value for name, value in event.items() if name != "time"}


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    length = _whole_length(content)
    if length < len(content):
        os.truncate(path, length)


def _whole_length(content: bytes) -> int:
    """Bytes up to the end of the last whole line."""
    return content.rfind(b"\n") + 1
