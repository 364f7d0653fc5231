"""A checkout in a temporary folder, in which the real stages run as programs of their own, timed and weighed."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pictures import prepared_here
from benchmarks.setting import PROJECT, find_archive
from cifarflow import files
from cifarflow.config import load_config, read_yaml
from cifarflow.data.sources.cifar10 import VARIABLE
from cifarflow.workspace import Workspace

CARRIED = ("stages", "src", "dvc.yaml")
FOREIGN = ("DVC_ROOT", "DVC_EXP_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID")
"""Variables that would lead a stage out of the temporary checkout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What one program took."""

    seconds: float
    peak_bytes: int
    """Largest resident memory of the process."""


def make_checkout(root: Path, *, recipe: str, changes: Mapping[str, Any]) -> Workspace:
    """The project's stages and package under `root`, with a recipe as params; `changes` are by dotted key."""
    for name in CARRIED:
        source, target = PROJECT / name, root / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    workspace = Workspace.at(root, {})
    tree = read_yaml(PROJECT / "recipes" / f"{recipe}.yaml")
    for key, value in {"train.device": "cpu", **changes}.items():
        *sections, leaf = key.split(".")
        section = tree
        for name in sections:
            section = section[name]
        section[leaf] = value
    files.write_json(workspace.params, tree)  # JSON is YAML 1.2
    load_config(workspace.params)
    return workspace


def run_stage(workspace: Workspace, stage: str) -> Usage:
    return run_program([sys.executable, f"stages/{stage}.py"], workspace)


def run_program(command: Sequence[str], workspace: Workspace) -> Usage:
    """Raises RuntimeError with the end of what the program said when it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=workspace.root,
        env=_environment(workspace),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # of this child alone, not of all so far
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output[-3000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Usage(seconds=seconds, peak_bytes=usage.ru_maxrss * unit)


def fill_prepared(workspace: Workspace) -> str:
    """Bring CIFAR-10 (or as many random pictures) into data/prepared; returns which."""
    if (here := prepared_here()) is not None:
        shutil.copytree(here.prepared, workspace.prepared)
        return "CIFAR-10 (data/prepared)"
    if find_archive() is not None:
        run_stage(workspace, "download")
        run_stage(workspace, "prepare")
        return "CIFAR-10 (the archive)"
    run_program([sys.executable, "-m", "benchmarks.pictures", str(workspace.root)], workspace)
    return "random pictures, as many as CIFAR-10 has"


def _environment(workspace: Workspace) -> dict[str, str]:
    environ = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    archive = find_archive()
    paths = [str(workspace.root / "src"), str(PROJECT)]
    return {
        **environ,
        **({VARIABLE: str(archive)} if archive else {}),
        "DVC_ROOT": str(workspace.root),
        "PYTHONPATH": os.pathsep.join(paths),
    }
