"""A public record's own script, run where its author's repository lies, and what its table says of each run."""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

RUNS = re.compile(r"range\(200\)")
"""How often the scripts of airbench train, in their last lines; a copy with another number is what runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One training, and what it reaches on the test split."""

    accuracy: float
    """With test-time augmentation, in [0, 1]."""
    seconds: float
    """Whitening, steps and test-time augmentation; no other first weights, compiling, or accuracy after each epoch."""


def run_script(script: Path, *, runs: int) -> list[Training]:
    """Let `script` (airbench94_muon.py or airbench96_faster.py) train once more than `runs` times; the last `runs`.

    The first is always dropped: in it a compiler runs, unless the script, as airbench94_muon.py, trains once before to
    warm it up. Raises SystemExit when its text does not say in one place how often it trains, and when it fails.
    """
    asked = runs + 1
    text, found = RUNS.subn(f"range({asked})", script.read_text(encoding="utf-8"))
    if found != 1:
        raise SystemExit(f"{script} says `{RUNS.pattern}` {found} times, not once: is it one of airbench's?")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / script.name
        copy.write_text(text, encoding="utf-8")
        with subprocess.Popen(
            [sys.executable, "-u", copy], cwd=script.parent, stdout=subprocess.PIPE, text=True
        ) as process:
            output = _shown(process)
    trainings = read_table(output)
    if process.returncode != 0 or len(trainings) < asked:
        raise SystemExit(
            f"{script} ended with {process.returncode} after {len(trainings)} of {asked} trainings:\n{output[-2000:]}"
        )
    return trainings[-runs:]


def _shown(process: subprocess.Popen[str]) -> str:
    """What `process` prints, passed on line by line: a script trains for minutes."""
    lines = []
    for line in process.stdout or ():
        print(line, end="", flush=True)
        lines.append(line)
    return "".join(lines)


def read_table(output: str) -> list[Training]:
    """The rows of the table that close a training, whose epoch is `eval`."""
    head: list[str] = []
    trainings = []
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "tta_val_acc" in cells:
            head = cells
        elif len(cells) == len(head) and (row := dict(zip(head, cells, strict=True)))["epoch"] == "eval":
            seconds = row.get("time_seconds") or row["total_time_seconds"]
            trainings.append(Training(accuracy=float(row["tta_val_acc"]), seconds=float(seconds)))
    return trainings
