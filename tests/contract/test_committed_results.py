"""The results in Git are those of one real run: dvc.lock names the bytes of every metric and plot."""

import hashlib
from pathlib import Path

import pytest

from cifarflow.config import read_yaml

STAGES = ("train", "evaluate", "export")


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_lock_names_the_committed_metrics_and_plots(project: Path, stage: str) -> None:
    outs = read_yaml(project / "dvc.lock")["stages"][stage]["outs"]
    committed = [out for out in outs if out["path"].startswith(("metrics/", "plots/"))]
    assert committed
    for out in committed:
        content = (project / out["path"]).read_bytes()
        assert hashlib.md5(content).hexdigest() == out["md5"], out["path"]


def test_the_committed_params_are_the_default_recipe_and_those_of_the_run(project: Path) -> None:
    params = read_yaml(project / "params.yaml")
    assert params == read_yaml(project / "recipes" / "cifar94.yaml")
    locked = read_yaml(project / "dvc.lock")["stages"]["train"]["params"]["params.yaml"]
    assert locked == {"seed": params["seed"], "model": params["model"], "train": params["train"]}


def test_every_recipe_is_valid_and_whole(project: Path) -> None:
    from cifarflow.config import load_config

    recipes = sorted((project / "recipes").glob("*.yaml"))
    assert {recipe.stem for recipe in recipes} >= {"cifar94", "tudui", "shapes"}
    for recipe in recipes:
        load_config(recipe)
