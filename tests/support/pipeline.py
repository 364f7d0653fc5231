"""A checkout of its own in a temporary folder, in which the real DVC runs the real stages."""

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from cifarflow import files
from cifarflow.config import read_yaml
from cifarflow.workspace import Workspace

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROJECT = Path(__file__).resolve().parents[2]
SMALL_EPOCHS = 8
OF_THE_CLOCK = ("seconds", "images_per_second")
RAN = re.compile(r"^Running stage '(\w+)'", re.MULTILINE)
RESTORED = re.compile(r"^Stage '(\w+)' is cached - skipping run", re.MULTILINE)
KEPT = re.compile(r"^Stage '(\w+)' didn't change, skipping", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one command did."""

    code: int
    output: str

    @property
    def ran(self) -> list[str]:
        """Stages whose command was run, and not restored from DVC's cache."""
        return [stage for stage in RAN.findall(self.output) if stage not in self.restored]

    @property
    def restored(self) -> list[str]:
        return RESTORED.findall(self.output)

    @property
    def kept(self) -> list[str]:
        return KEPT.findall(self.output)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkout:
    root: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace.at(self.root, {})

    @property
    def environment(self) -> dict[str, str]:
        """That of `uv run` in the checkout; without what this process set for its own talk with MLflow."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_HTTP_")}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**inherited, "PATH": path, "PYTHONPATH": str(self.root / "src")}

    def run(self, *command: str, expect: int | None = 0, **environ: str) -> Outcome:
        """Run a command as `uv run` would; fails unless it exits with `expect` (None: any code)."""
        environment = {**self.environment, **environ}
        done = subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        output = done.stdout + done.stderr
        assert expect is None or done.returncode == expect, output
        return Outcome(code=done.returncode, output=output)

    def dvc(self, *arguments: str, expect: int | None = 0) -> Outcome:
        return self.run("dvc", *arguments, expect=expect)

    def set_params(self, **changes: str) -> None:
        """Change leaves of params.yaml as a person would, by editing their lines; `a__b` stands for `a.b`."""
        path = self.workspace.params
        for key, value in changes.items():
            files.write_text(path, edited(path.read_text(), key.split("__"), value))
        read_yaml(path)

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)


def make_small_pipeline(root: Path) -> Checkout:
    """A checkout whose whole pipeline takes seconds: drawn shapes, few of them, and eight epochs of training."""
    checkout = make_checkout(root)
    checkout.run("cifarflow", "recipe", "shapes")
    checkout.set_params(
        train__epochs=str(SMALL_EPOCHS), data__shapes__train_count="400", data__shapes__test_count="200"
    )
    checkout.commit("shapes, small")
    return checkout


def tensorboard_of(folder: Path) -> "EventAccumulator":
    """All that the files of one TensorBoard run show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    return events.Reload()


def output_digests(checkout: Checkout) -> dict[str, str]:
    """Digest of every output: as dvc.lock has them, and of those that tell of time, without it."""
    stages = read_yaml(checkout.root / "dvc.lock")["stages"]
    outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
    timeless = {
        "plots/history.csv": files.digest_of(history(checkout)),
        **{
            f"metrics/{stage}.json": files.digest_of(_timeless(checkout, stage))
            for stage in ("train", "export")
        },
    }
    assert timeless.keys() <= outs.keys()
    return {**outs, **timeless}


def history(checkout: Checkout) -> list[dict[str, float]]:
    """plots/history.csv without what a clock says."""
    with checkout.workspace.history.open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [{k: v for k, v in row.items() if k not in OF_THE_CLOCK} for row in rows]


def _timeless(checkout: Checkout, stage: str) -> dict[str, Any]:
    found = files.read_json(checkout.workspace.metrics(stage))
    return {
        name: v for name, v in found.items() if name not in OF_THE_CLOCK and not name.startswith("latency")
    }


def undisturbed_digests(session: Path, make: Callable[[], Checkout]) -> dict[str, str]:
    """The outputs of a small pipeline that nobody disturbs: made once, by whoever asks first, for all test workers.

    `session` is the folder that all workers of this test session share.
    """
    kept = session / "undisturbed.json"
    with FileLock(session / "undisturbed.lock"):
        if not kept.exists():
            files.write_json(kept, output_digests(make()))
        return files.read_json(kept)


def edited(text: str, key: list[str], value: str) -> str:
    """`text` with the value of one key replaced, comments kept."""
    lines, depth = text.splitlines(keepends=True), 0
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if indent == 2 * depth and line.strip().startswith(f"{key[depth]}:"):
            depth += 1
            if depth == len(key):
                lines[number] = re.sub(
                    r":.*?(\s+#.*)?$", lambda match: f": {value}{match[1] or ''}", line, count=1
                )
                return "".join(lines)
    raise KeyError(".".join(key))


def make_checkout(root: Path) -> Checkout:
    """The project's files as they are now, uncommitted changes included, as a Git repository of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=PROJECT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        source = PROJECT / name
        if name and source.is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, root / name)
    for compiled in (PROJECT / "src").rglob("*.nb[ci]"):  # numba's, which would take ten seconds a checkout
        (root / compiled.relative_to(PROJECT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(compiled, root / compiled.relative_to(PROJECT))
    (root / "dvc.lock").unlink(missing_ok=True)
    checkout = Checkout(root=root)
    checkout.run("git", "init", "-q", "-b", "main")
    for setting, value in (("user.name", "test"), ("user.email", "test@localhost")):
        checkout.run("git", "config", setting, value)
    checkout.commit("as it is")
    return checkout
