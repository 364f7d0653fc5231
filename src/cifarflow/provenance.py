"""Where a result comes from: keys that change exactly when their inputs do, and facts about code and machine."""

import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any

from cifarflow import files
from cifarflow.config import Config
from cifarflow.data.packed import DatasetInfo
from cifarflow.errors import without_passwords, without_secrets
from cifarflow.inputs import code_digest
from cifarflow.tracking.identity import EXPERIMENT_TAG, DatasetRecord, PipelineState, RunIdentity
from cifarflow.tracking.tracker import Tracker, open_tracker
from cifarflow.workspace import Workspace

RECORDED_PACKAGES = ("torch", "torchvision", "mlflow", "dvc", "onnx", "onnxruntime", "numba", "numpy")


def tracked_stage(
    stage: str,
    config: Config,
    workspace: Workspace,
    *,
    run_key: str,
    dataset: DatasetInfo,
    tags: Mapping[str, str],
) -> AbstractContextManager[Tracker]:
    """The tracker of a stage, told all that is known before the stage starts; `tags` win over those of this machine."""
    everything = {**machine_tags(), **tags}
    state = pipeline_state(config, workspace, run_key=run_key, dataset=dataset, tags=everything)
    return open_tracker(stage, state, tracking=config.tracking, workspace=workspace)


def pipeline_state(
    config: Config, workspace: Workspace, *, run_key: str, dataset: DatasetInfo, tags: Mapping[str, str]
) -> PipelineState:
    """What one MLflow run stands for: a trained model under the present params, code and data.

    `tags` tell of the machine that did the work, which may be another than this one.
    """
    return PipelineState(
        identity=run_identity(config, workspace, run_key=run_key),
        params=_public(config.flat()),
        tags={**code_tags(workspace, os.environ), **tags},
        dataset=DatasetRecord(
            name=dataset.source,
            digest=files.digest_of(dict(dataset.digests)),
            source=dataset.source,
            counts={split: sum(by_class.values()) for split, by_class in dataset.counts.items()},
        ),
    )


def _public(params: dict[str, Any]) -> dict[str, Any]:
    """The params as others may see them: an address may hold a password, or a key in its query."""
    uri, urls = params["tracking.mlflow.uri"], params["data.cifar10.urls"]
    return {
        **params,
        "tracking.mlflow.uri": uri and without_passwords(uri),
        "data.cifar10.urls": [without_secrets(url) for url in urls],
    }


def train_key(
    config: Config, workspace: Workspace, *, data: Mapping[str, Any], compute: Mapping[str, Any]
) -> str:
    """The run key: digest of what decides the trained weights.

    `data` holds the digest of each split (the test split's decides nothing), `compute` the device and the precision
    that this machine chose.
    """
    return files.digest_of(
        {
            "params": {"seed": config.seed, "model": _plain(config.model), "train": _plain(config.train)},
            "data": {split: digest for split, digest in data.items() if split != "test"},
            "code": code_digest(workspace, "train"),
            "libraries": {name: metadata.version(name) for name in ("torch", "torchvision")},
            "compute": dict(compute),
        }
    )


def run_identity(config: Config, workspace: Workspace, *, run_key: str) -> RunIdentity:
    """The keys of all stages that hang on one trained model under the present params and code."""
    keys = {
        stage: files.digest_of(
            {"run_key": run_key, "params": _plain(section), "code": code_digest(workspace, stage)}
        )
        for stage, section in (("evaluate", config.evaluate), ("export", config.export))
    }
    return RunIdentity(run_key=run_key, stage_keys={"train": run_key, **keys})


def machine_tags() -> dict[str, str]:
    """The machine at hand and its versions; they do not decide a result but tell where it was made."""
    return {
        "hardware.processor": processor_name(),
        "hardware.cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        **{f"version.{name}": metadata.version(name) for name in RECORDED_PACKAGES},
    }


def code_tags(workspace: Workspace, environ: Mapping[str, str]) -> dict[str, str]:
    """The commit of the code that runs, and the experiment that it is tried in."""
    commit, dirty = git_state(workspace.root)
    tags = {"git.commit": commit, "git.dirty": str(dirty).lower()}
    if experiment := environ.get("DVC_EXP_NAME"):
        tags[EXPERIMENT_TAG] = experiment
    return tags


def compute_tags(compute: Mapping[str, Any]) -> dict[str, str]:
    """How a result was computed, from a compute plan or from the metrics of a stage."""
    return {f"compute.{name}": str(value) for name, value in compute.items()}


def git_state(folder: Path) -> tuple[str, bool]:
    """The commit and whether tracked files differ from it; ("unknown", False) outside a Git checkout."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", False


def processor_name() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path, *command: str) -> str:
    """Without Git's optional locks: `git status` would write the index, and a kill would leave its lock for ever."""
    return subprocess.run(
        ["git", "--no-optional-locks", *command], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def _plain(section: Any) -> dict[str, Any]:
    return section.model_dump(mode="json")
