"""The results in Git are those of one real run of the code beside them: dvc.lock names the bytes of both."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cifarflow.config import load_config, read_yaml
from cifarflow.provenance import git_state

STAGES = ("train", "evaluate", "export")


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_lock_names_the_committed_metrics_and_plots(project: Path, stage: str) -> None:
    outs = read_yaml(project / "dvc.lock")["stages"][stage]["outs"]
    committed = [out for out in outs if out["path"].startswith(("metrics/", "plots/"))]
    assert committed
    for out in committed:
        content = (project / out["path"]).read_bytes()
        assert hashlib.md5(content).hexdigest() == out["md5"], out["path"]


def test_the_run_is_one_of_the_default_recipe(project: Path) -> None:
    params = read_yaml(project / "recipes" / "cifar94.yaml")
    if read_yaml(project / "params.yaml") != params:
        pytest.skip("params.yaml was changed: these are results of your own")
    locked = read_yaml(project / "dvc.lock")["stages"]["train"]["params"]["params.yaml"]
    assert locked == {"seed": params["seed"], "model": params["model"], "train": params["train"]}


def test_the_run_is_of_the_committed_code(project: Path) -> None:
    """As DVC itself sees it. Data and models are not in Git, so that they lack says nothing."""
    if git_state(project)[1]:
        pytest.skip("there are changes that are not committed")
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"], cwd=project, capture_output=True, check=True
    )
    changed = {
        stage: paths
        for stage, entries in json.loads(status.stdout).items()
        for entry in entries
        if isinstance(entry, dict)
        and (
            paths := [path for path in entry.get("changed deps", {}) if path.startswith(("src/", "stages/"))]
        )
    }
    assert not changed, "run `uv run dvc repro`; commit dvc.lock, metrics/, plots/ and the README's figures"


def test_every_recipe_is_valid_and_whole(project: Path) -> None:
    recipes = sorted((project / "recipes").glob("*.yaml"))
    assert {recipe.stem for recipe in recipes} >= {"cifar94", "tudui", "shapes"}
    for recipe in recipes:
        load_config(recipe)


def test_the_readme_tells_the_committed_figures(project: Path) -> None:
    found = json.loads((project / "metrics" / "evaluation.json").read_text(encoding="utf-8"))
    figures = f"{found['accuracy']:.2%}, with views {found['accuracy_tta']:.2%}".replace("%", " %")
    assert figures in " ".join((project / "README.md").read_text(encoding="utf-8").split())
