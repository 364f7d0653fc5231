"""docs/benchmarks.md from what the benchmarks found, and from what is known of machine and versions."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby

from benchmarks import elsewhere
from benchmarks.result import Result
from cifarflow.compute.processor import bf16_units, usable_processors
from cifarflow.provenance import processor_name

VERSIONS = ("torch", "torchvision", "numba", "numpy", "mlflow", "onnxruntime")
GIB = 1 << 30
HEAD = "| what | against | goal | measured (min to max, rounds) | met? |\n|---|---|---|---|---|"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One benchmark's process: its full output, and its result unless it failed."""

    name: str
    output: str
    seconds: float
    result: Result | None


def page(runs: Sequence[Run], *, facts: Mapping[str, str], quick: bool, left_out: Sequence[str] = ()) -> str:
    """The whole page: facts, one table, then each output. `left_out` are benchmarks that a quick page is without."""
    parts = [
        "# Benchmarks",
        "Written by `uv run python -m benchmarks`, not by hand. Both sides of a ratio were measured in turns in one "
        "run, since the machine may have had other work. A figure is the median over rounds; where it is a ratio of "
        "whole trainings, put together from steps of several kinds, it is one of two sums of medians. Min and max "
        "are those of single rounds.",
    ]
    if quick:
        parts.append(
            "**This page is of `--quick`: few rounds, shorter turns. It shows that everything runs; its figures are "
            f"not to be quoted.** Left out: {', '.join(left_out) or 'nothing'}."
        )
    parts.append("\n".join(f"* {name}: {value}" for name, value in facts.items()))
    rows_of_elsewhere = (row_of_elsewhere(entry, elsewhere.kept(entry.name)) for entry in elsewhere.ROWS)
    parts.append("\n".join([HEAD, *map(run_row, runs), *rows_of_elsewhere]))
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
    return row(found.name, found.against, found.goal_text, found.measured_text, verdict(found))


def row_of_elsewhere(entry: elsewhere.Row, one: elsewhere.Kept | None) -> str:
    """A row of another machine: what was kept of it, or the command that measures it."""
    if one is None:
        return row(entry.what, entry.against, entry.goal, f"not measured yet: `{entry.command}`", "")
    found = one.result
    measured = f"{found.measured_text}; {found.note}; {one.date}, commit {one.commit}"
    return row(found.name, found.against, found.goal_text, measured, verdict(found))


def verdict(found: Result) -> str:
    return "yes" if found.met else "**no**"


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
