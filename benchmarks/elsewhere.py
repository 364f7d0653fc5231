"""Figures of machines that a page is not written on: kept in files, so that the page has them wherever it is made."""

import datetime
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.result import Result
from benchmarks.setting import PROJECT, commit_text
from cifarflow import files

FOLDER = PROJECT / "docs" / "measured"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure of another machine, with the command that measures it there and keeps it."""

    name: str
    """Of its file, and what the command is told."""
    what: str
    against: str
    goal: str
    command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A result, whose note names the machine, with the code that it is of."""

    result: Result
    commit: str
    date: str


ROWS = (
    Row(
        name="gpu-94",
        what="time to 94.0 % on a GPU, mean of 50 runs or more",
        against="airbench94_muon.py, the public record's own script, on the same GPU",
        goal="<= 0.9",
        command="uv run python -m benchmarks.gpu_time --compile "
        "--script ../cifar10-airbench/airbench94_muon.py --recipe gpu94 --keep gpu-94",
    ),
    Row(
        name="gpu-96",
        what="time to 96.0 % on a GPU, mean of 10 runs or more",
        against="airbench96_faster.py on the same GPU",
        goal="<= 0.9",
        command="uv run python -m benchmarks.gpu_time --compile "
        "--script ../cifar10-airbench/airbench96_faster.py "
        "--recipe cifar96 --target 0.96 --runs 10 --keep gpu-96",
    ),
    Row(
        name="gpu-overhead",
        what="training with checkpoints, tracking and progress on a GPU",
        against="the same without them",
        goal="<= 1.03",
        command="uv run python -m benchmarks.gpu_overhead --keep gpu-overhead",
    ),
    Row(
        name="two-gpus",
        what="training by 2 GPUs, pictures a second",
        against="1 GPU, times 2",
        goal=">= 0.9",
        command="uv run python -m benchmarks.processes --keep two-gpus",
    ),
)


def keep(name: str, result: Result, *, folder: Path = FOLDER) -> Path:
    """Write the result with commit and date; returns the file, which belongs into Git."""
    one = Kept(result=result, commit=commit_text(), date=datetime.date.today().isoformat())
    path = folder / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, asdict(one))
    return path


def kept(name: str, *, folder: Path = FOLDER) -> Kept | None:
    """What was kept under this name, if anything was."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    found = files.read_json(path)
    return Kept(**{**found, "result": Result(**found["result"])})
