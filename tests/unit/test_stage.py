"""A stage looks at its inputs before and after its work: what counts as changed, and how it is told."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cifarflow import inputs
from cifarflow.errors import InputsChangedError
from cifarflow.workspace import Workspace

PIPELINE = """\
stages:
  train:
    cmd: python stages/train.py
    deps: [stages/train.py, src/training, data/prepared/dataset.json, data/images]
    params: [seed, train]
"""
PARAMS = """\
seed: 1
trainer: of another stage
train:
  epochs: 3  # passes
  optimizer: {name: adamw, momentum: [0.9, 0.99]}
checkpoint: {interval_seconds: 60}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A stage with params, a file and a folder of code, a file and a folder of data."""
    contents = {
        "dvc.yaml": PIPELINE,
        "params.yaml": PARAMS,
        "stages/train.py": "import training\n",
        "src/training/fit.py": "steps = 1\n",
        "src/training/notes.txt": "no code\n",
        "src/tracking.py": "not a dep\n",
        "data/prepared/dataset.json": "{}\n",
        "data/images/cat/1.png": "a cat",
    }
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return Workspace.at(tmp_path, {})


def fault_of(workspace: Workspace, change: Callable[[Path], object]) -> str:
    """What is said of a change that is made while the stage works."""
    with pytest.raises(InputsChangedError) as raised, inputs.unchanged("train", workspace):
        change(workspace.root)
    return str(raised.value)


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return change


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(content)


def touch(name: str) -> Callable[[Path], object]:
    return lambda root: os.utime(root / name, (0, 0))


def remove(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (edit("params.yaml", "epochs: 3", "epochs: 4"), "params.yaml: train.epochs"),
        (edit("params.yaml", "seed: 1\n", ""), "params.yaml: seed"),
        (edit("params.yaml", "0.99", "0.98"), "params.yaml: train.optimizer.momentum"),
        (edit("params.yaml", "  epochs", "  threads: 2\n  epochs"), "params.yaml: train.threads"),
        (edit("stages/train.py", "training", "training  # a comment"), "stages/train.py"),
        (edit("src/training/fit.py", "1", "2"), "src/training/fit.py"),
        (write("src/training/new.py", ""), "src/training/new.py"),
        (remove("src/training/fit.py"), "src/training/fit.py"),
        (edit("data/prepared/dataset.json", "{}", "[]"), "data/prepared/dataset.json"),
        (touch("data/prepared/dataset.json"), "data/prepared/dataset.json"),
        (remove("data/prepared/dataset.json"), "data/prepared/dataset.json"),
        (write("data/images/cat/2.png", "another cat"), "data/images/cat/2.png"),
        (remove("data/images/cat/1.png"), "data/images/cat/1.png"),
    ],
)
def test_what_changed_under_a_stage_is_named(
    workspace: Workspace, change: Callable[[Path], object], named: str
) -> None:
    fault = fault_of(workspace, change)
    assert fault.startswith(f"{named} changed while train ran, ")
    assert "`uv run dvc repro` runs train again" in fault


@pytest.mark.parametrize(
    "change",
    [
        edit("params.yaml", "# passes", "# passes over the data"),
        edit("params.yaml", "seed: 1", "seed:   1"),
        edit("params.yaml", "of another stage", "a name that begins with that of a key"),
        edit("params.yaml", "interval_seconds: 60", "interval_seconds: 5"),
        lambda root: (root / "src/training/fit.py").write_bytes(b"steps = 1\r\n"),
        touch("src/training/fit.py"),
        write("src/training/notes.txt", "other notes\n"),
        edit("src/tracking.py", "not", "still not"),
        touch("data/images/cat"),
    ],
)
def test_what_dvc_does_not_record_may_change(workspace: Workspace, change: Callable[[Path], object]) -> None:
    """A comment, keys and files of other stages, line ends, times of code."""
    code = inputs.code_digest(workspace, "train")
    with inputs.unchanged("train", workspace):  # which raises otherwise
        change(workspace.root)
    assert inputs.code_digest(workspace, "train") == code


def test_an_input_that_was_never_there_has_not_changed(workspace: Workspace) -> None:
    """The stage names it itself."""
    (workspace.root / "data/prepared/dataset.json").unlink()
    with inputs.unchanged("train", workspace):  # which raises otherwise
        missing = not (workspace.root / "data/prepared/dataset.json").exists()
    assert missing


def test_of_many_changes_the_first_are_named_and_the_rest_counted(workspace: Workspace) -> None:
    def add_pictures(root: Path) -> None:
        for number in range(10, 18):
            write(f"data/images/cat/{number}.png", "a cat")(root)

    named = ", ".join(f"data/images/cat/{number}.png" for number in range(10, 15))
    assert fault_of(workspace, add_pictures).startswith(f"{named} and 3 more changed while train ran, ")


def test_as_many_as_are_shown_are_not_counted(workspace: Workspace) -> None:
    def add_pictures(root: Path) -> None:
        for number in range(5):
            write(f"data/images/cat/a{number}.png", "a cat")(root)

    assert "data/images/cat/a4.png changed while" in fault_of(workspace, add_pictures)


def test_a_fault_of_the_stage_itself_is_told_first(workspace: Workspace) -> None:
    with pytest.raises(ZeroDivisionError), inputs.unchanged("train", workspace):
        remove("data/prepared/dataset.json")(workspace.root)
        raise ZeroDivisionError


def run_stage(root: Path, work: str, environ: dict[str, str]) -> "subprocess.Popen[str]":
    """A process that does `work` as the stage train."""
    script = f"import sys; from cifarflow import stage; sys.exit(stage.run('train', lambda: {work}))"
    inherited = {name: value for name, value in os.environ.items() if name not in ("DVC_ROOT", "RANK")}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=root,
        env={**inherited, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("environ", "code"),
    [
        ({"DVC_ROOT": "."}, 2),
        ({"DVC_ROOT": ".", "RANK": "0"}, 2),
        ({"DVC_ROOT": ".", "RANK": "1"}, 0),
        ({}, 0),
    ],
)
def test_a_stage_that_dvc_started_looks_and_of_several_processes_the_main_one(
    workspace: Workspace, environ: dict[str, str], code: int
) -> None:
    """Of a stage that was started by hand DVC records nothing."""
    with run_stage(workspace.root, "open('stages/train.py', 'w').close()", environ) as process:
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said.count("error: stages/train.py changed while train ran, ")) == (
        code,
        code // 2,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is another error on Windows")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_nobody_reads_is_lost_and_the_work_is_not(workspace: Workspace, stream: str) -> None:
    work = f"[print(1, file=sys.{stream}, flush=True) for _ in range(3)] and open('done', 'w').close()"
    with run_stage(workspace.root, work, {}) as process:
        pipe = getattr(process, stream)
        pipe.close()
        assert process.wait(30) == 0
    assert (workspace.root / "done").exists()
