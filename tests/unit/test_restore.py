"""Results that another machine made and that are broken: `cifarflow sync` names the file in one line."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from cifarflow import cli, files
from cifarflow.data.packed import DatasetInfo, write_dataset
from cifarflow.errors import DataIntegrityError
from cifarflow.restore import current_state, read_history, read_numbers
from cifarflow.workspace import Workspace
from tests.support.hostile import one_line
from tests.support.small import PROJECT, small_config

DESCRIPTION = {
    "architecture": "tudui",
    "options": {},
    "classes": ["a", "b"],
    "image_size": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
    "run_key": "ab" * 32,
}
TRAINED = {"compute": {"device": "cpu", "torch": "2", "processor": "theirs"}, "train_loss": 0.5}


@pytest.fixture
def pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A checkout whose results came from elsewhere, and the current folder."""
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    shutil.copy(PROJECT / "dvc.yaml", tmp_path)
    for name in ("src", "stages"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    workspace = Workspace.at(tmp_path, {})
    colours = (0.5, 0.5, 0.5)
    dataset = DatasetInfo(
        source="shapes",
        classes=("a", "b"),
        image_size=32,
        mean=colours,
        std=colours,
        counts={"train": {"a": 1, "b": 1}},
        digests={"train": "1" * 64},
        validation_indices_digest=None,
    )
    write_dataset(workspace.dataset, dataset)
    files.write_json(workspace.model_description, DESCRIPTION)
    files.write_json(workspace.metrics("train"), TRAINED)
    files.write_json(workspace.metrics("evaluation"), {"accuracy": 0.5, "views_precision": "bf16"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return workspace


def test_the_state_of_pulled_results_is_that_of_the_machine_that_made_them(pulled: Workspace) -> None:
    state = current_state(small_config(), pulled)
    assert state is not None
    assert state.identity.run_key == DESCRIPTION["run_key"]
    assert state.tags["hardware.processor"] == "theirs"
    assert state.tags["compute.views_precision"] == "bf16"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("models/model.json", "[]"),
        ("models/model.json", "{}"),
        ("models/model.json", "null"),
        ("models/model.json", "{"),
        ("models/model.json", json.dumps({**DESCRIPTION, "run_key": "/tmp/evil"})),
        ("metrics/train.json", "{}"),
        ("metrics/train.json", "[]"),
        ("metrics/train.json", '{"compute": "cpu"}'),
        ("metrics/train.json", "["),
        ("metrics/evaluation.json", "[]"),
        ("metrics/evaluation.json", "5"),
    ],
)
def test_sync_names_a_broken_file_of_results_and_the_way_back(
    pulled: Workspace, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (pulled.root / name).write_text(content)
    assert cli.main(["sync"]) == 2
    line = one_line(capsys.readouterr().err)
    assert line.startswith(f"error: {pulled.root / name} ")
    assert any(way in line for way in ("dvc checkout", "git checkout", "run the stage again"))


@pytest.mark.parametrize(
    "content", ["[]", '{"a": {"b": 1' + "0" * 400 + "}}"], ids=["list", "endless number"]
)
def test_metrics_that_are_none_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(DataIntegrityError, match=r"export\.json holds a .*git checkout"):
        read_numbers(tmp_path / "export.json")


def test_metrics_are_numbers_by_dotted_key(tmp_path: Path) -> None:
    files.write_json(tmp_path / "export.json", {"a": {"b": 1, "c": "text"}, "d": 0.5})
    assert read_numbers(tmp_path / "export.json") == {"a.b": 1.0, "d": 0.5}


def test_the_committed_history_is_one() -> None:
    with (PROJECT / "plots" / "history.csv").open(encoding="utf-8", newline="") as stream:
        epochs = [int(row["epoch"]) for row in csv.DictReader(stream)]
    assert [epoch for epoch, _ in read_history(PROJECT / "plots" / "history.csv")] == epochs


@pytest.mark.parametrize(
    "content",
    [b"step,loss\n1,2\n", b"epoch,loss\n1,x\n", b"epoch,loss\nnan,1\n", b"epoch,loss\n1\n", b"epoch\n1,2\n",
     b"epoch,loss\n1,\xff\n", b"epoch,loss\n1," + b"9" * 200_000],
    ids=["no epoch", "a word", "an epoch that is none", "short", "long", "no text", "a long cell"],
)  # fmt: skip
def test_a_history_that_is_none_is_one_fault(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "history.csv").write_bytes(content)
    with pytest.raises(DataIntegrityError) as caught:
        read_history(tmp_path / "history.csv")
    assert one_line(str(caught.value)).startswith(f"{tmp_path / 'history.csv'} is not a history of epochs: ")
