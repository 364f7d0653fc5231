"""Run every benchmark, each in a process of its own, one after another, and write docs/benchmarks.md.

uv run python -m benchmarks            # about half an hour on 2 cores
uv run python -m benchmarks --quick    # under 5 minutes: those of speed and memory, with few rounds
"""

import argparse
import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.report import Run, facts, page
from benchmarks.result import Result
from benchmarks.setting import PROJECT, commit_text
from cifarflow import files

BENCHMARKS = (
    "recipe_time",
    "arithmetic",
    "course_epoch",
    "augmentation",
    "overhead",
    "outage",
    "processes",
    "memory",
    "stages_time",
)
LEFT_OUT_WHEN_QUICK = ("outage",)
"""How a training takes an outage of MLflow is no figure of speed or memory; a minute is saved without it."""
PAGE = PROJECT / "docs" / "benchmarks.md"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds; the page says so")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, help="print these, write no page")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="where to write the page (default docs/benchmarks.md)"
    )
    arguments = parser.parse_args()
    known = facts(date=datetime.date.today().isoformat(), commit=commit_text())
    options = ["--quick"] if arguments.quick else []
    names = arguments.only or chosen(quick=arguments.quick)
    runs = [run([sys.executable, "-m", f"benchmarks.{name}", *options], name=name) for name in names]
    if not arguments.only:
        left_out = LEFT_OUT_WHEN_QUICK if arguments.quick else ()
        files.write_text(arguments.page, page(runs, facts=known, quick=arguments.quick, left_out=left_out))
        print(f"wrote {arguments.page}")
    failed = [one.name for one in runs if one.result is None]
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def chosen(*, quick: bool) -> tuple[str, ...]:
    """The benchmarks that a page is made of."""
    return tuple(name for name in BENCHMARKS if not (quick and name in LEFT_OUT_WHEN_QUICK))


def run(command: list[str], *, name: str) -> Run:
    """Run one benchmark, showing what it says; a failure is a Run without a result."""
    print(f"== {name}", flush=True)
    start, lines = time.monotonic(), []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # Set in many containers: every process would compile its libraries anew, and be timed with it.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with subprocess.Popen(
        [*command, "--json"],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
    result = take_result(lines) if process.returncode == 0 else None
    return Run(name=name, output="".join(lines), seconds=time.monotonic() - start, result=result)


def take_result(lines: list[str]) -> Result | None:
    """The result among the lines, taken out of them; a library may still have warned behind it."""
    for line in reversed(lines):
        if line.startswith("{"):
            lines.remove(line)
            return Result.from_json(line)
    return None


if __name__ == "__main__":
    sys.exit(main())
