"""Send what MLflow lacks: after an outage, a deleted database, or for results out of DVC's cache."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from cifarflow.config.schema import TrackingConfig
from cifarflow.errors import DataIntegrityError, TrackingError, without_passwords
from cifarflow.tracking.identity import PipelineState
from cifarflow.tracking.journal import Event, all_journals, journals_of
from cifarflow.tracking.mlflow_tracker import MlflowTracker
from cifarflow.workspace import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncReport:
    runs_completed: int
    """Runs that were made or got something new."""
    events_sent: int
    failures: tuple[str, ...]


def sync(
    workspace: Workspace, tracking: TrackingConfig, *, current: PipelineState | None = None
) -> SyncReport:
    """Complete the run of every pipeline state that a journal knows, and of the current one.

    DVC may have put the current state together from its cache without running a stage; no journal names it.
    Raises TrackingError when tracking is off.
    """
    if not tracking.mlflow.enabled:
        raise TrackingError("params.yaml: tracking.mlflow.enabled is false. Set it to true, then sync again.")
    tracker = MlflowTracker(tracking.mlflow, workspace)
    try:
        tracker.connect()
    except Exception as error:  # a dead store has no common exception type
        return SyncReport(
            runs_completed=0,
            events_sent=0,
            failures=(f"{without_passwords(tracker.uri)}: {_first_line(error)}",),
        )
    states, broken = known_states(workspace, current=current)
    report = _complete_all(tracker, workspace, states)
    return replace(report, failures=(*broken, *report.failures))


def known_states(
    workspace: Workspace, *, current: PipelineState | None = None
) -> tuple[list[PipelineState], list[str]]:
    """Every state that a stage was ever started in, oldest first and as last described, and broken journals."""
    started: list[Event] = []
    broken: list[str] = []
    for journal in all_journals(workspace):
        try:
            started += [event for event in journal.events() if event["kind"] == "start"]
        except DataIntegrityError as error:  # it must not keep the runs of others back
            broken.append(str(error))
    started.sort(key=lambda event: event["time"])
    states = {event["state_key"]: PipelineState.from_event(event) for event in started}
    if current is not None:
        states.setdefault(current.identity.state_key, current)
    return list(states.values()), broken


def _complete_all(
    tracker: MlflowTracker, workspace: Workspace, states: Iterable[PipelineState]
) -> SyncReport:
    completed, sent, failures = 0, 0, []
    for state in states:
        try:
            result = tracker.complete(state, journals_of(workspace, state.identity.stage_keys))
        except DataIntegrityError:  # a damaged journal, which `known_states` has named
            continue
        except Exception as error:  # one broken run must not keep the others back
            failures.append(f"{state.name}: {_first_line(error)}")
        else:
            completed += result.changed
            sent += result.events_sent
    return SyncReport(runs_completed=completed, events_sent=sent, failures=tuple(failures))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {without_passwords(next(iter(str(error).splitlines()), ''))}"
