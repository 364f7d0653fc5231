"""The journal: on disk at once, whole after a kill, and never with a number twice."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cifarflow import errors
from cifarflow.config.schema import MlflowConfig, TensorboardConfig, TrackingConfig
from cifarflow.errors import DataIntegrityError
from cifarflow.tracking.identity import DatasetRecord, PipelineState, RunIdentity
from cifarflow.tracking.journal import Journal, JournalWriter, all_journals, journal_of, journals_of
from cifarflow.tracking.tracker import has_writer, open_tracker
from cifarflow.workspace import Workspace
from tests.support.disks import ALONE, needs_mounts
from tests.support.hostile import one_line

DAMAGE = {
    "no UTF-8": b'{"time": 1, "kind": "status", "status": "\xff\xfe"}',
    "zeros": bytes(60),
    "nothing": b"",
    "half an event": b'{"time": 1, "kind": "metr',
    "a list": b"[1]",
    "no kind": b"{}",
    "no time": b'{"kind": "status", "status": "FINISHED"}',
    "a text for a time": b'{"time": "1", "kind": "status", "status": "FINISHED"}',
    "brackets without end": b"[" * 100_000,
}
"""Lines of a file that a disk, or a hand, has spoilt."""
UNTRACKED = TrackingConfig(
    mlflow=MlflowConfig(enabled=False, uri=None, experiment="x", timeout_seconds=1),
    tensorboard=TensorboardConfig(enabled=False, pictures=0, graph=False, histograms=False),
)
STATE = PipelineState(
    identity=RunIdentity(
        run_key="a" * 64, stage_keys={"train": "a" * 64, "evaluate": "b" * 64, "export": "c" * 64}
    ),
    params={},
    tags={},
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "train-0123")


def recording(journal: Journal) -> contextlib.closing[JournalWriter]:
    return contextlib.closing(JournalWriter(journal))


def lines(journal: Journal) -> list[dict]:
    return [{name: value for name, value in event.items() if name != "time"} for event in journal.events()]


def spoil(journal: Journal, damage: bytes, *, number: int) -> None:
    """Put a line that is no event among the others, as line `number`."""
    content = journal.path.read_bytes().splitlines(keepends=True)
    content.insert(number - 1, damage + b"\n")
    journal.path.write_bytes(b"".join(content))


def test_an_event_is_readable_by_others_as_soon_as_it_is_written(journal: Journal) -> None:
    with recording(journal) as writer:
        writer.metrics({"train_loss": 0.1 + 0.2}, step=3)
        assert lines(journal) == [
            {"kind": "metrics", "step": 3, "values": {"train_loss": 0.30000000000000004}}
        ]
    assert journal.events()[0]["time"] > 1_700_000_000_000


def test_nan_and_infinity_survive(journal: Journal) -> None:
    with recording(journal) as writer:
        writer.metrics({"a": math.nan, "b": math.inf}, step=0)
    values = journal.events()[0]["values"]
    assert math.isnan(values["a"]) and values["b"] == math.inf


def test_a_resumed_stage_does_not_repeat_a_metric_of_a_step(journal: Journal) -> None:
    with recording(journal) as first:
        first.metrics({"train_loss": 2.0}, step=0)
        first.metrics({"train_loss": 1.0}, step=1)
    with recording(journal) as second:
        assert second.last_step == 1
        assert second.metrics({"train_loss": 1.0}, step=1) == {}
        assert second.metrics({"train_loss": 1.0, "validation_loss": 3.0}, step=1) == {"validation_loss": 3.0}
        assert second.metrics({"train_loss": 0.5}, step=2) == {"train_loss": 0.5}
    assert [(event["step"], event["values"]) for event in journal.events()] == [
        (0, {"train_loss": 2.0}),
        (1, {"train_loss": 1.0}),
        (1, {"validation_loss": 3.0}),
        (2, {"train_loss": 0.5}),
    ]


@pytest.mark.parametrize(
    "torn", [b'{"time": 1, "kind": "metrics", "step": 1, "valu', *filter(None, DAMAGE.values())]
)
def test_a_torn_last_line_is_invisible_and_is_cut_off_at_the_next_start(
    journal: Journal, torn: bytes
) -> None:
    with recording(journal) as writer:
        writer.metrics({"train_loss": 2.0}, step=0)
    with journal.path.open("ab") as stream:
        stream.write(torn)
    assert len(journal.events()) == 1
    with recording(journal) as writer:
        writer.metrics({"train_loss": 1.0}, step=1)
    assert [event["step"] for event in journal.events()] == [0, 1]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_damaged_line_is_named_with_its_number_and_the_way_out(
    journal: Journal, damage: bytes, number: int
) -> None:
    with recording(journal) as writer:
        for step in range(2):
            writer.metrics({"train_loss": 1.0}, step=step)
    spoil(journal, damage, number=number)
    with pytest.raises(DataIntegrityError) as caught:
        journal.events()
    line = one_line(str(caught.value))
    assert line.startswith(f"{journal.path}: line {number} is not an event")
    assert f"Move the folder {journal.folder} away" in line and "uv run cifarflow sync" in line


def test_a_stage_with_a_damaged_record_is_refused_in_one_line_until_the_record_is_moved_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace.at(tmp_path, {})
    record = journal_of(workspace, "train", "a" * 64)

    def stage() -> None:
        with open_tracker("train", STATE, tracking=UNTRACKED, workspace=workspace) as tracker:
            tracker.metrics({"train_loss": 1.0}, step=0)

    assert errors.run(stage) == 0
    whole = lines(record)
    spoil(record, DAMAGE["no UTF-8"], number=2)
    spoilt = record.path.read_bytes()
    assert errors.run(stage) == errors.CifarflowError.exit_code
    assert one_line(capsys.readouterr().err).startswith(f"error: {record.path}: line 2 is not an event")
    assert record.path.read_bytes() == spoilt, "whoever looks for what is left of it finds all of it"
    record.folder.rename(tmp_path / "away")
    assert errors.run(stage) == 0
    assert lines(record) == whole


def test_what_was_written_before_a_kill_9_is_there(journal: Journal) -> None:
    program = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from cifarflow.tracking.journal import Journal, JournalWriter
        writer = JournalWriter(Journal(Path({str(journal.folder)!r})))
        writer.metrics({{"train_loss": 1.5}}, step=7)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    if os.name == "nt":
        pytest.skip("Windows has no SIGKILL")
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [event["values"] for event in journal.events()] == [{"train_loss": 1.5}]


def test_an_artifact_outlives_its_original_and_an_equal_one_is_kept_once(
    journal: Journal, tmp_path: Path
) -> None:
    original = tmp_path / "curve.csv"
    original.write_text("1,2\n")
    with recording(journal) as writer:
        writer.artifact(original, folder="plots")
    with recording(journal) as writer:
        writer.artifact(original, folder="plots")
    original.unlink()
    (event,) = journal.events()
    assert event["file"] == "plots/curve.csv"
    assert journal.file(event).read_text() == "1,2\n"


def test_a_changed_artifact_is_recorded_again(journal: Journal, tmp_path: Path) -> None:
    original = tmp_path / "curve.csv"
    with recording(journal) as writer:
        for content in ("1\n", "2\n"):
            original.write_text(content)
            writer.artifact(original, folder="")
    assert len(journal.events()) == 2
    assert journal.file(journal.events()[-1]).read_text() == "2\n"


def test_acknowledgements_are_kept_for_each_run(journal: Journal) -> None:
    with recording(journal) as writer:
        writer.status("FINISHED")
    assert journal.acknowledged("a") == 0
    journal.acknowledge("a", 3)
    journal.acknowledge("b", 5)
    assert (journal.acknowledged("a"), journal.acknowledged("b")) == (3, 5)


def test_journals_are_found_by_the_keys_of_a_state(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path / "temporary", home=tmp_path)
    keys = {"train": "a" * 64, "evaluate": "b" * 64, "export": "c" * 64}
    for stage in ("evaluate", "train"):
        with recording(journal_of(workspace, stage, keys[stage])) as writer:
            writer.status("FINISHED")
    found = journals_of(workspace, keys)
    assert [journal.folder.name for journal in found] == ["train-" + "a" * 16, "evaluate-" + "b" * 16]
    assert {journal.folder for journal in all_journals(workspace)} == {journal.folder for journal in found}
    assert found[0].folder.is_relative_to(tmp_path / ".cifarflow")


def test_a_state_survives_the_way_through_the_journal(journal: Journal) -> None:
    state = PipelineState(
        identity=RunIdentity(run_key="a", stage_keys={"train": "a", "evaluate": "b"}),
        params={"seed": 1, "model.tudui.hidden": None, "model.speednet.widths": [1, 2]},
        tags={"git.commit": "0" * 40},
        dataset=DatasetRecord(name="shapes", digest="d", source="generator", counts={"train": 3}),
    )
    with recording(journal) as writer:
        writer.start(state, stage="train")
    assert PipelineState.from_event(journal.events()[0]) == state


def test_the_state_key_follows_every_stage_key_and_not_their_order() -> None:
    state_key = RunIdentity(run_key="a", stage_keys={"train": "a", "evaluate": "b"}).state_key
    assert RunIdentity(run_key="a", stage_keys={"evaluate": "b", "train": "a"}).state_key == state_key
    assert RunIdentity(run_key="a", stage_keys={"train": "a", "evaluate": "c"}).state_key != state_key


def test_a_record_has_a_writer_while_a_stage_is_open(tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path, {})
    record = journal_of(workspace, "train", "a" * 64)
    assert not has_writer(record)
    with open_tracker("train", STATE, tracking=UNTRACKED, workspace=workspace):
        assert has_writer(record) and not record.is_finished
    assert not has_writer(record) and record.is_finished


def test_a_record_is_finished_when_its_stage_came_to_its_end(journal: Journal) -> None:
    assert not journal.is_finished
    for status, finished in (("KILLED", False), ("FINISHED", True), ("FAILED", False)):
        with recording(journal) as writer:
            writer.status(status)
        assert journal.is_finished == finished


ON_A_FULL_DISK = """\
import subprocess, sys
from pathlib import Path
from cifarflow import errors
from cifarflow.tracking.journal import Journal, JournalWriter

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "none", str(disk)], check=True)

def main():
    writer = JournalWriter(Journal(disk / "journal"))
    try:
        for step in range(1000):
            writer.metrics({"loss": 1.0}, step=step)
    finally:
        writer.close()

sys.exit(errors.run(main))
"""


@needs_mounts
def test_a_full_disk_is_told_of_with_the_journals_name_though_closing_it_fails_too(tmp_path: Path) -> None:
    command = [*ALONE, sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert f"cannot write or read {tmp_path}/journal/events.jsonl: No space left on device" in line
