"""What a stage reports to: its journal first, then the views of it, TensorBoard and MLflow."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from cifarflow.config.schema import MlflowConfig, TrackingConfig
from cifarflow.errors import TrackingError, without_passwords
from cifarflow.tracking.identity import EXPERIMENT_TAG, PipelineState
from cifarflow.tracking.journal import Journal, JournalWriter, journal_of, journals_of
from cifarflow.tracking.mlflow_tracker import MlflowTracker, is_server, tracking_uri
from cifarflow.tracking.sender import Sender
from cifarflow.tracking.tensorboard import TensorboardView
from cifarflow.workspace import Workspace

logger = logging.getLogger(__name__)

LOCAL_PATIENCE_SECONDS = 60.0  # a new SQLite store takes mlflow some seconds to set up, and it can't hang
SILENT_SECONDS = 3.0  # what a person waits for without being told why


class Tracker:
    """Records one stage; a call returns when the journal is on disk, and no view makes it fail or wait."""

    def __init__(self, writer: JournalWriter, sender: Sender | None, tensorboard: TensorboardView) -> None:
        self._writer = writer
        self._sender = sender
        self.tensorboard = tensorboard

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Numbers of one step; one that the journal has from before a kill is not written again."""
        new = self._writer.metrics(values, step=step)
        # TensorBoard hides a step that is repeated: it gets all of it, and shows what the journal, and MLflow, have.
        shown = new if len(new) == len(values) else self._writer.values_at(step)
        self.tensorboard.scalars(shown, step=step)
        self._notify()

    def artifact(self, path: Path, *, folder: str = "") -> None:
        """A file to keep with the run, under its name in `folder`."""
        self._writer.artifact(path, folder=folder)
        self._notify()

    def onnx_model(self, path: Path, *, image_size: int, classes: Sequence[str]) -> None:
        """The exported model, `images` uint8 [N, H, W, 3] to `probabilities` float32 [N, classes]."""
        self._writer.onnx_model(path, image_size=image_size, classes=classes)
        self._notify()

    def _notify(self) -> None:
        if self._sender is not None:
            self._sender.notify()


@contextlib.contextmanager
def open_tracker(
    stage: str, state: PipelineState, *, tracking: TrackingConfig, workspace: Workspace
) -> Iterator[Tracker]:
    """The tracker of one stage; its run ends as FINISHED, FAILED (an exception) or KILLED (Ctrl-C, SIGTERM).

    Raises TrackingError when another process runs the same stage under the same key: one record has one writer.
    """
    journal = journal_of(workspace, stage, state.identity.stage_keys[stage])
    with _sole_writer(journal, stage=stage):
        yield from _open(journal, stage, state, tracking=tracking, workspace=workspace)


def has_writer(journal: Journal) -> bool:
    """Whether a stage writes it at this moment."""
    if not journal.folder.is_dir():
        return False
    lock = _lock_of(journal)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def _lock_of(journal: Journal) -> FileLock:
    """It goes with the process that holds it, killed or not."""
    return FileLock(journal.folder / "writer.lock", blocking=False)


@contextlib.contextmanager
def _sole_writer(journal: Journal, *, stage: str) -> Iterator[None]:
    journal.folder.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(journal)
    try:
        lock.acquire()
    except Timeout:
        raise TrackingError(
            f"another process runs {stage} with the same params, data and code ({journal.folder}). Wait until it is "
            "done, then run the same command again: DVC takes the result out of its cache."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _open(
    journal: Journal, stage: str, state: PipelineState, *, tracking: TrackingConfig, workspace: Workspace
) -> Iterator[Tracker]:
    if tracking.mlflow.enabled:  # an address that cannot be is refused before a record is begun
        tracking_uri(tracking.mlflow, workspace, os.environ)
    writer = JournalWriter(journal)
    tensorboard = _open_tensorboard(writer, tracking, workspace, state=state, stage=stage)
    writer.start(state, stage=stage)
    sender = _open_sender(tracking.mlflow, workspace, state=state) if tracking.mlflow.enabled else None
    interrupted = False
    try:
        yield Tracker(writer, sender, tensorboard)
    except BaseException as error:
        interrupted = not isinstance(error, Exception)
        writer.status("KILLED" if interrupted else "FAILED")
        raise
    else:
        writer.status("FINISHED")
    finally:
        writer.close()
        tensorboard.close()
        if sender is not None:
            _close_sender(sender, tracking.mlflow, workspace, in_a_hurry=interrupted)


def _open_tensorboard(
    writer: JournalWriter, tracking: TrackingConfig, workspace: Workspace, *, state: PipelineState, stage: str
) -> TensorboardView:
    """The view of one stage: what a stage other than train shows has a folder of its own."""
    if not tracking.tensorboard.enabled:
        return TensorboardView(None)
    folder = _tensorboard_folder(workspace, state)
    if stage != "train":  # one model may be evaluated in several ways
        folder /= f"{stage}-{state.identity.stage_keys[stage][:8]}"
    return TensorboardView(folder, goes_on=writer.last_step is not None)


def _tensorboard_folder(workspace: Workspace, state: PipelineState) -> Path:
    """The folder of a trained model: it keeps its first name, though the experiment may have another one now."""
    key = state.identity.run_key[:12]
    known = sorted(workspace.tensorboard_logs.glob(f"*{key}"))
    name = "-".join(filter(None, (state.tags.get(EXPERIMENT_TAG), key)))
    return known[0] if known else workspace.tensorboard_logs / name


def _open_sender(config: MlflowConfig, workspace: Workspace, *, state: PipelineState) -> Sender:
    store = MlflowTracker(config, workspace)

    def send() -> None:
        store.complete(state, journals_of(workspace, state.identity.stage_keys))

    sender = Sender(send, target=f"MLflow at {without_passwords(store.uri)}")
    sender.notify()
    return sender


def _close_sender(sender: Sender, config: MlflowConfig, workspace: Workspace, *, in_a_hurry: bool) -> None:
    """`in_a_hurry` is who pressed Ctrl-C: no longer than a person waits without being told why."""
    sender.notify()  # of the status event
    uri = MlflowTracker(config, workspace).uri
    local_seconds = max(LOCAL_PATIENCE_SECONDS, config.timeout_seconds)
    patience = config.timeout_seconds if is_server(uri) else local_seconds
    if in_a_hurry:
        patience = min(SILENT_SECONDS, patience)
    if not _close_in_time(sender, patience, store=without_passwords(uri)):
        logger.warning(
            "MLflow lacks a part of this run; `uv run cifarflow sync` sends the rest from %s.",
            workspace.journals,
        )


def _close_in_time(sender: Sender, patience: float, *, store: str) -> bool:
    """Whether all was sent within `patience` seconds; a longer wait is told of."""
    sent = sender.close(timeout_seconds=min(SILENT_SECONDS, patience))
    more = patience - SILENT_SECONDS
    if sent or not sender.is_busy or more <= 0:
        return sent
    logger.warning("Waiting up to %.0f s for MLflow at %s to take the rest of this run.", more, store)
    return sender.close(timeout_seconds=more)
