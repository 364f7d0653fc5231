"""The records of results that DVC brought out of its cache or from a remote: no stage ran here, so none reported."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifarflow import files
from cifarflow.config import Config, flatten
from cifarflow.data.packed import read_dataset
from cifarflow.errors import DataIntegrityError, TrackingError
from cifarflow.provenance import compute_tags, pipeline_state
from cifarflow.tracking.identity import PipelineState
from cifarflow.tracking.journal import Journal, journal_of
from cifarflow.tracking.tracker import Tracker, has_writer, open_tracker
from cifarflow.workspace import Workspace

RESTORED_TAG = "cifarflow.restored"
PLOTS = (".csv", ".png")
REPORTING = ("train", "evaluate", "export")
MAKING_THE_MODEL = ("download", "prepare", "train")
OWN_PICTURES = "data/images"
BRING_BACK = "Run `git checkout metrics plots` for the committed one, or `uv run dvc repro` for a new one."


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    stages: list[str]
    """The stages that got records."""
    state: PipelineState | None
    """The state that all files at hand make up; None when a stage has yet to run."""


def restore_records(config: Config, workspace: Workspace) -> Restored:
    """Write the journal of each stage whose results are here and that no journal tells of to the end.

    A stage that was killed here and ended on another machine has a journal that breaks off: it is completed.

    The records say what metrics/train.json says of the machine that did the work, not what this machine is. A stage
    that DVC would run again is left out: its files belong to other params or other code. Raises TrackingError, and
    DataIntegrityError for a file of results that is broken.
    """
    state = current_state(config, workspace)
    if state is None:
        return Restored(stages=[], state=None)
    outdated = _outdated_stages(workspace)
    if outdated is None:
        return Restored(stages=[], state=None)
    reports: dict[str, tuple[str, Callable[[Workspace, Tracker], None]]] = {
        "train": ("train", _report_train),
        "evaluate": ("evaluation", _report_evaluation),
        "export": ("export", _report_export),
    }
    restored = []
    for stage, (metrics, report) in reports.items():
        journal = journal_of(workspace, stage, state.identity.stage_keys[stage])
        if not _is_told(journal) and stage not in outdated and workspace.metrics(metrics).is_file():
            with open_tracker(stage, state, tracking=config.tracking, workspace=workspace) as tracker:
                report(workspace, tracker)
            restored.append(stage)
    return Restored(stages=restored, state=None if outdated & set(REPORTING) else state)


def _is_told(journal: Journal) -> bool:
    """Whether a journal tells of its stage to the end, or will; a damaged one is nothing to write to."""
    try:
        return journal.is_finished or has_writer(journal)
    except DataIntegrityError:  # `sync` names it
        return True


def current_state(config: Config, workspace: Workspace) -> PipelineState | None:
    """The pipeline state that the files at hand make up, or None where there is no trained model.

    Raises DataIntegrityError.
    """
    if not workspace.model_description.is_file() or not workspace.dataset.is_file():
        return None
    from cifarflow.models.bundle import read_description  # here: it takes torch, which takes a second

    trained, evaluated = workspace.metrics("train"), workspace.metrics("evaluation")
    compute = _compute(trained) if trained.is_file() else {}
    views = _mapping(evaluated).get("views_precision") if evaluated.is_file() else None
    return pipeline_state(
        config,
        workspace,
        run_key=read_description(workspace.model_description).run_key,
        dataset=read_dataset(workspace.dataset),
        tags={
            RESTORED_TAG: "true",
            **_trained_on(compute),
            **compute_tags({"views_precision": views} if views else {}),
        },
    )


def _mapping(path: Path) -> dict[str, Any]:
    """What a file of metrics holds. Raises DataIntegrityError when it is something else."""
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise DataIntegrityError(f"{path} holds a {type(content).__name__}, expected a mapping. {BRING_BACK}")
    return content


def _compute(trained: Path) -> dict[str, Any]:
    compute = _mapping(trained).get("compute")
    if not isinstance(compute, dict):
        raise DataIntegrityError(
            f"{trained} has no mapping `compute`, which tells of the machine that trained. {BRING_BACK}"
        )
    return compute


def _trained_on(compute: Mapping[str, Any]) -> dict[str, str]:
    """What metrics/train.json tells of the machine that trained; cores and system it does not know, nor guesses."""
    known = {"hardware.processor": str(compute.get("processor", "unknown")), **compute_tags(compute)}
    return {**known, "version.torch": str(compute["torch"])} if "torch" in compute else known


def _outdated_stages(workspace: Workspace) -> set[str] | None:
    """The stages whose results, by DVC's word, are not those of the present params, code and data.

    None while DVC works: then a stage reports for itself, and what is at hand may change at any moment.
    """
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True, check=False)
    if done.returncode and "is busy" in done.stderr:
        return None
    if done.returncode:
        raise TrackingError(f"`dvc status` failed in {workspace.root}: {done.stderr.strip()}")
    status = json.loads(done.stdout)
    # DVC names the stage that changed and not those behind it. Files that are missing here (raw data, which nobody
    # pulled) do not make a result another.
    # Nor do own pictures, which Git does not hold: data/prepared says what the model was trained on.
    changes = [status.get(stage) for stage in MAKING_THE_MODEL]
    behind = REPORTING if any(map(_differs, changes)) else ()
    return {*status, *behind}


def _differs(changes: Any) -> bool:
    """Whether DVC's word on a stage tells of more than files that are not here."""
    if isinstance(changes, Mapping):
        return any(_differs(change) for name, change in changes.items() if name != OWN_PICTURES)
    if isinstance(changes, list):
        return any(map(_differs, changes))
    return changes is not None and changes not in ("deleted", "not in cache")


def _report_train(workspace: Workspace, tracker: Tracker) -> None:
    for epoch, values in read_history(workspace.history):
        tracker.metrics(values, step=epoch)
    tracker.artifact(workspace.history, folder="plots")


def read_history(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The epochs of plots/history.csv. Raises DataIntegrityError when it is something else."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = [(int(row.pop("epoch")), row) for row in csv.DictReader(stream)]
        return [(epoch, {name: float(value) for name, value in row.items()}) for epoch, row in rows]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise DataIntegrityError(f"{path} is not a history of epochs: {what}. {BRING_BACK}") from None


def _report_metrics(workspace: Workspace, tracker: Tracker, *, name: str, prefix: str) -> None:
    numbers = read_numbers(workspace.metrics(name))
    tracker.metrics({f"{prefix}{key}": value for key, value in numbers.items()}, step=0)


def read_numbers(path: Path) -> dict[str, float]:
    """The numbers of a file of metrics by dotted key. Raises DataIntegrityError when it is something else."""
    leaves = flatten(_mapping(path))
    try:
        return {key: float(value) for key, value in leaves if isinstance(value, int | float)}
    except OverflowError as error:  # JSON has whole numbers of any length
        raise DataIntegrityError(f"{path} holds a number that is too large: {error}. {BRING_BACK}") from None


def _report_evaluation(workspace: Workspace, tracker: Tracker) -> None:
    _report_metrics(workspace, tracker, name="evaluation", prefix="test_")
    for plot in sorted(workspace.plots.iterdir()):  # a kill may have left the beginning of one, as a .part
        if plot.is_file() and plot.suffix in PLOTS and plot != workspace.history:
            tracker.artifact(plot, folder="plots")


def _report_export(workspace: Workspace, tracker: Tracker) -> None:
    from cifarflow.models.bundle import read_description

    _report_metrics(workspace, tracker, name="export", prefix="export_")
    tracker.artifact(workspace.export / "MODEL_CARD.md", folder="export")
    model = read_description(workspace.model_description)
    tracker.onnx_model(workspace.onnx_model, image_size=model.image_size, classes=model.classes)
