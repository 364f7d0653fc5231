"""Keys that change exactly when their inputs do, and records for what came out of DVC's cache."""

import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from cifarflow import files
from cifarflow.config.schema import Config
from cifarflow.data.packed import DatasetInfo
from cifarflow.errors import without_passwords
from cifarflow.provenance import (
    code_digest,
    code_tags,
    git_state,
    machine_tags,
    pipeline_state,
    run_identity,
    train_key,
)
from cifarflow.workspace import Workspace
from tests.support.small import PROJECT, small_config

DATA = {"train": "a", "validation": "b", "test": "c"}
COMPUTE = {"device": "cpu", "precision": "fp32"}
SHAPES = DatasetInfo(
    source="shapes",
    classes=("a", "b"),
    image_size=16,
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    counts={"train": {"a": 1, "b": 1}},
    digests={"train": "x"},
    validation_indices_digest=None,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A checkout with the project's code and pipeline."""
    for name in ("src", "stages"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "dvc.yaml", tmp_path / "dvc.yaml")
    return Workspace.at(tmp_path, {})


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def key(config: Config, workspace: Workspace, **changes: Any) -> str:
    inputs: dict[str, Any] = {"data": DATA, "compute": COMPUTE, **changes}
    return train_key(config, workspace, **inputs)


def test_the_run_key_depends_on_what_decides_the_weights(workspace: Workspace) -> None:
    first = key(small_config(), workspace)
    assert key(small_config(), workspace) == first
    changed = [
        key(small_config(seed=2), workspace),
        key(small_config(train__epochs=4), workspace),
        key(small_config(model__name="tudui"), workspace),
        key(small_config(), workspace, data={**DATA, "train": "x"}),
        key(small_config(), workspace, compute={**COMPUTE, "precision": "bf16"}),
    ]
    append(workspace.root / "src" / "cifarflow" / "training" / "fit.py", "# other code\n")
    changed.append(key(small_config(), workspace))
    assert len({first, *changed}) == 7


@pytest.mark.parametrize("split", ["train", "validation", "of a later version"])
def test_the_run_key_depends_on_every_split_but_the_tests(workspace: Workspace, split: str) -> None:
    data = {**DATA, "of a later version": "d"}
    first = key(small_config(), workspace, data=data)
    assert key(small_config(), workspace, data={**data, split: "x"}) != first
    assert key(small_config(), workspace, data={**data, "test": "x"}) == first


@pytest.mark.parametrize(("package", "decides"), [("torch", True), ("torchvision", True), ("mlflow", False)])
def test_the_run_key_depends_on_the_versions_of_what_computes_the_weights(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, package: str, decides: bool
) -> None:
    first = key(small_config(), workspace)
    installed = metadata.version

    def upgraded(name: str) -> str:
        return f"{installed(name)}.post1" if name == package else installed(name)

    monkeypatch.setattr(metadata, "version", upgraded)
    assert (key(small_config(), workspace) != first) == decides


def test_the_run_key_does_not_depend_on_the_rest(workspace: Workspace) -> None:
    first = key(small_config(), workspace)
    assert key(small_config(evaluate__flip=False), workspace) == first
    assert key(small_config(checkpoint__interval_seconds=5), workspace) == first
    assert key(small_config(), workspace, data={**DATA, "test": "x"}) == first
    append(workspace.root / "src" / "cifarflow" / "errors.py", "# a typo mended\n")
    assert key(small_config(), workspace) == first


def test_line_ends_do_not_change_the_code(workspace: Workspace) -> None:
    before = code_digest(workspace, "train")
    path = workspace.root / "src" / "cifarflow" / "training" / "fit.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert code_digest(workspace, "train") == before


def test_a_state_is_the_keys_of_all_stages(workspace: Workspace) -> None:
    first = run_identity(small_config(), workspace, run_key="k")
    other = run_identity(small_config(evaluate__flip=False), workspace, run_key="k")
    assert first.run_key == other.run_key == "k"
    assert first.stage_keys["export"] == other.stage_keys["export"]
    assert first.stage_keys["evaluate"] != other.stage_keys["evaluate"]
    assert first.state_key != other.state_key


def test_an_experiment_is_of_the_commit_that_it_was_made_from(tmp_path: Path) -> None:
    """A queued one may run after its repository has gone on."""
    for name in ("home", "temporary"):
        (tmp_path / name).mkdir()
        git = ["git", "-C", str(tmp_path / name), "-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run([*git, "init", "-q"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", name], check=True)
    workspace = Workspace.at(tmp_path / "temporary", {"DVC_ROOT": str(tmp_path / "home")})
    assert code_tags(workspace, {})["git.commit"] == git_state(tmp_path / "temporary")[0]


def test_tags_tell_of_code_and_machine(workspace: Workspace) -> None:
    tags = {**code_tags(workspace, {"DVC_EXP_NAME": "colder"}), **machine_tags()}
    assert tags["dvc.experiment"] == "colder"
    assert tags["git.commit"] == "unknown"
    assert tags["version.torch"].startswith("2.")
    assert all(isinstance(value, str) for value in tags.values())


def test_a_password_in_the_servers_address_is_not_recorded(workspace: Workspace) -> None:
    config = small_config(
        tracking__mlflow__uri="https://me:secret@with@tracking.example/mlflow",
        data__cifar10__urls=["https://me:secret@mirror.example/cifar.tar.gz?key=secret"],
    )
    state = pipeline_state(config, workspace, run_key="k", dataset=SHAPES, tags={})
    assert state.params["tracking.mlflow.uri"] == "https://tracking.example/mlflow"
    assert state.params["data.cifar10.urls"] == ["https://mirror.example/cifar.tar.gz"]
    assert "secret" not in str(state)
    assert state.params["train.epochs"] == config.train.epochs


ADDRESSES = [
    ("postgresql://h/db?user=bob&password=SECRET", "postgresql://h/db?user=bob&password=..."),
    ("postgresql://h/db?sslpassword=SECRET&user=bob", "postgresql://h/db?sslpassword=...&user=bob"),
    ("mssql://h/db?UID=bob;PWD=SECRET;x=1", "mssql://h/db?UID=bob;PWD=...;x=1"),
    ("https://h/mlflow?access_token=SECRET", "https://h/mlflow?access_token=..."),
    ("http://bob:SECRET@host:1", "http://host:1"),
    ("http://bob:SEC/RET@host:1", "http://host:1"),
    ("http://bob:SEC@RET@host:1/mlflow", "http://host:1/mlflow"),
    ("sqlite:///x.db", "sqlite:///x.db"),
    ("http://host:1/mlflow?user=bob", "http://host:1/mlflow?user=bob"),
]


@pytest.mark.parametrize(("address", "shown"), ADDRESSES)
def test_an_address_is_shown_without_its_password(address: str, shown: str) -> None:
    assert without_passwords(address) == shown
    message = "connection to {}, and to {} failed: try again"
    assert without_passwords(message.format("http://b", address)) == message.format("http://b", shown)


@pytest.mark.parametrize(("address", "shown"), ADDRESSES)
def test_the_record_of_a_run_has_the_address_as_it_is_shown(
    workspace: Workspace, address: str, shown: str
) -> None:
    state = pipeline_state(
        small_config(tracking__mlflow__uri=address), workspace, run_key="k", dataset=SHAPES, tags={}
    )
    assert state.params["tracking.mlflow.uri"] == shown
    assert "SEC" not in str(state) and "RET" not in str(state)


def test_git_state_of_the_project() -> None:
    commit, dirty = git_state(PROJECT)
    assert len(commit) == 40
    assert isinstance(dirty, bool)


def test_git_state_leaves_gits_own_files_alone(tmp_path: Path) -> None:
    """`git status` would refresh the index: a kill then left index.lock, and Git refused every later command."""
    tracked = tmp_path / "tracked.txt"
    tracked.write_text("x")
    for command in ("init -q", "add .", "-c user.name=test -c user.email=test@localhost commit -qm x"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    os.utime(tracked, (0, 0))
    index = (tmp_path / ".git" / "index").read_bytes()
    assert git_state(tmp_path)[1] is False
    assert (tmp_path / ".git" / "index").read_bytes() == index


def test_keys_do_not_depend_on_where_the_checkout_lies(workspace: Workspace, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(workspace.root, moved, ignore=shutil.ignore_patterns("elsewhere"))
    assert key(small_config(), Workspace.at(moved, {})) == key(small_config(), workspace)
    assert files.digest_of(DATA) == files.digest_of(dict(reversed(DATA.items())))
