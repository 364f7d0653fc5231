"""Results that another machine made: `cifarflow sync` records them, and names a broken file of them in one line."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cifarflow import cli, files
from cifarflow.config import load_config
from cifarflow.data.packed import DatasetInfo, write_dataset
from cifarflow.errors import DataIntegrityError
from cifarflow.restore import current_state, read_history, read_numbers, restore_records
from cifarflow.tracking.journal import all_journals
from cifarflow.workspace import Workspace
from tests.support.hostile import one_line
from tests.support.pipeline import Checkout
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
UNREAD = [
    "data/images/.gitkeep",
    "data/images/cat/1.png",
    "data/raw/folder.safetensors",
    *(f"data/prepared/{split}.safetensors" for split in ("train", "validation", "test")),
    "models/model.safetensors",
    "models/export/model.onnx",
    "models/export/MODEL_CARD.md",
]
"""What a whole pipeline has beside the files that a record is made of."""
PLOTTED = ["history.csv", "confusion.csv", "per_class.csv", "confusion.png", "per_class.png", "mistakes.png"]
TRAINED = {"compute": {"device": "cpu", "torch": "2", "processor": "theirs"}, "train_loss": 0.5}


@pytest.fixture
def pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A checkout whose results came from elsewhere, and the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return put_results(tmp_path)


def put_results(root: Path) -> Workspace:
    """A checkout with the results of train and evaluate."""
    for name in ("params.yaml", "dvc.yaml", ".dvcignore"):
        shutil.copy(PROJECT / name, root)
    for name in ("src", "stages"):
        shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    workspace = Workspace.at(root, {})
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
    return workspace


def clone_of(recorded: Path, folder: Path) -> Workspace:
    shutil.copytree(recorded, folder / "clone", symlinks=True)
    return Workspace.at(folder / "clone", {})


def test_the_state_of_pulled_results_is_that_of_the_machine_that_made_them(pulled: Workspace) -> None:
    state = current_state(small_config(), pulled)
    assert state is not None
    assert state.identity.run_key == DESCRIPTION["run_key"]
    assert state.tags["hardware.processor"] == "theirs"
    assert state.tags["compute.views_precision"] == "bf16"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of own pictures, and the real DVC's word in dvc.lock that they are those of these params."""
    folder = tmp_path_factory.mktemp("recorded")
    workspace = put_results(folder)
    for name in UNREAD:
        files.write_text(folder / name, name)
    for name in PLOTTED:
        files.write_text(workspace.plots / name, "epoch,train_loss\n0,0.5\n")
    files.write_json(workspace.metrics("export"), {"agreement": 1.0})
    checkout = Checkout(root=folder)
    checkout.set_params(
        data__source="folder", tracking__mlflow__enabled="false", tracking__tensorboard__enabled="false"
    )
    for command in ("git init -q", "dvc init -q", "dvc commit --force --quiet"):
        checkout.run(*command.split())
    return folder


def no_pictures(workspace: Workspace) -> None:
    """As a clone has the folder: Git holds .gitkeep, and DVC pulls outputs only."""
    shutil.rmtree(workspace.images / "cat")


def no_folder(workspace: Workspace) -> None:
    shutil.rmtree(workspace.images)


def no_raw_data(workspace: Workspace) -> None:
    """As after `dvc pull train evaluate export`."""
    no_pictures(workspace)
    shutil.rmtree(workspace.raw)


@pytest.mark.slow
@pytest.mark.parametrize("away", [no_pictures, no_folder, no_raw_data])
def test_results_of_own_pictures_that_are_not_here_are_recorded(
    recorded: Path, tmp_path: Path, away: Callable[[Workspace], None]
) -> None:
    workspace = clone_of(recorded, tmp_path)
    away(workspace)
    restored = restore_records(load_config(workspace.params), workspace)
    assert restored.stages == ["train", "evaluate", "export"]
    assert restored.state is not None
    assert all(journal.is_finished for journal in all_journals(workspace))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"data__source": "shapes"},
        {"data__shapes__seed": "33"},
        {"data__folder__image_size": "33"},
        {"train__epochs": "33"},
    ],
    ids=["source", "download", "prepare", "train"],
)
def test_results_of_own_pictures_under_earlier_params_are_not_recorded(
    recorded: Path, tmp_path: Path, change: dict[str, str]
) -> None:
    """`data.source` and `data.shapes` are params of the stage whose other input, the pictures, does not count."""
    workspace = clone_of(recorded, tmp_path)
    no_pictures(workspace)
    Checkout(root=workspace.root).set_params(**change)
    restored = restore_records(load_config(workspace.params), workspace)
    assert (restored.stages, restored.state) == ([], None)
    assert all_journals(workspace) == []


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
