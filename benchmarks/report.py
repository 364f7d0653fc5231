"""docs/benchmarks.md from what the benchmarks found, and from what is known of machine and versions."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby

from benchmarks.result import Result
from cifarflow.compute.processor import bf16_units, usable_processors
from cifarflow.provenance import processor_name

VERSIONS = ("torch", "torchvision", "numpy", "mlflow", "onnxruntime")
GIB = 1 << 30
HEAD = "| what | against | goal | measured: median (min to max, rounds) | met? |\n|---|---|---|---|---|"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One benchmark's process: its full output, and its result unless it failed."""

    name: str
    output: str
    seconds: float
    result: Result | None


@dataclass(frozen=True, slots=True)
class ByHand:
    """A row for a machine that is not this one, with the command that measures it there."""

    what: str
    against: str
    goal: str
    command: str


ON_A_GPU = (
    ByHand(
        "time to 94.0 % on a GPU, mean of 50 runs or more",
        "airbench94_muon.py, the public record's own script, on the same GPU",
        "<= 0.9",
        "uv run python -m benchmarks.gpu_time --script ../cifar10-airbench/airbench94_muon.py",
    ),
    ByHand(
        "time to 96.0 % on a GPU, mean of 10 runs or more",
        "airbench96_faster.py on the same GPU",
        "<= 0.9",
        "uv run python -m benchmarks.gpu_time --script ../cifar10-airbench/airbench96_faster.py "
        "--recipe cifar96 --target 0.96 --runs 10",
    ),
    ByHand(
        "training by 2 GPUs, pictures a second",
        "1 GPU, times 2",
        ">= 0.9",
        "uv run python -m benchmarks.processes",
    ),
)


def page(runs: Sequence[Run], *, facts: Mapping[str, str], quick: bool) -> str:
    """The whole page: facts, one table, then each output."""
    parts = [
        "# Benchmarks",
        "Written by `uv run python -m benchmarks`, not by hand. Both sides of a ratio were measured in turns in one "
        "run, since the machine may have had other work. Min and max are those of single rounds.",
    ]
    if quick:
        parts.append(
            "**This page is of `--quick`: few rounds, shorter turns. It shows that everything runs; its figures are "
            "not to be quoted.** Nothing is left out."
        )
    parts.append("\n".join(f"* {name}: {value}" for name, value in facts.items()))
    parts.append("\n".join([HEAD, *map(run_row, runs), *map(by_hand_row, ON_A_GPU)]))
    notes = [f"* {run.result.name}: {run.result.note}." for run in runs if run.result and run.result.note]
    if notes:
        parts.append("\n".join(notes))
    parts += [section(run) for run in runs]
    return "\n\n".join(parts) + "\n"


def run_row(run: Run) -> str:
    if run.result is None:
        reason = next(reversed([line for line in run.output.splitlines() if line.strip()]), "no output")
        return row(f"`{run.name}`", "", "", f"not measured: {reason}", "")
    found = run.result
    return row(
        found.name, found.against, found.goal_text, found.measured_text, "yes" if found.met else "**no**"
    )


def by_hand_row(entry: ByHand) -> str:
    return row(entry.what, entry.against, entry.goal, f"not measured yet: `{entry.command}`", "")


def row(*cells: str) -> str:
    """A table's row; a bar inside a cell would end it."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def section(run: Run) -> str:
    """What one benchmark said: tables as tables, lines as lines; of one that failed, its output as it was printed."""
    command = f"`uv run python -m benchmarks.{run.name}`, {run.seconds:.0f} s:"
    said = fenced(run.output) if run.result is None else rendered(run.output)
    return f"## {run.name}\n\n{command}\n\n{said}"


def rendered(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    blocks = groupby(lines, key=lambda line: line.startswith("|"))
    return "\n\n".join(
        "\n".join(block if is_table else (f"* {line.strip()}" for line in block))
        for is_table, block in blocks
    )


def fenced(output: str) -> str:
    """In a fence longer than any inside it."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall(r"`+", output)), default=0))
    return f"{fence}text\n{output.strip()}\n{fence}"


def facts(*, date: str, commit: str) -> dict[str, str]:
    """What a reader has to know of this machine and its software."""
    return {
        "date": date,
        "commit": commit,
        "processor": processor_name(),
        "processors used": str(usable_processors()),
        "memory": memory_text(),
        "bf16 units": ", ".join(bf16_units()) or "none",
        "load average at the start": ", ".join(f"{load:.1f}" for load in os.getloadavg())
        + " (1, 5, 15 minutes)",
        "system": f"{platform.platform(terse=True)}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {metadata.version(name)}" for name in VERSIONS),
    }


def memory_text() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.1f} GiB"
