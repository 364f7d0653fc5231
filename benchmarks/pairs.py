"""Two sides measured in turns: on a shared machine only figures of one run, taken side by side, can be compared."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from benchmarks.setting import PROJECT

Name = TypeVar("Name", bound=Hashable)
Turn = Callable[[], float]
"""Measures one side once."""


def alternate(turns: Mapping[Name, Turn], *, rounds: int) -> dict[Name, list[float]]:
    """Take every turn once a round, in order and then backwards, so that a steady drift cancels out."""
    found: dict[Name, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        names = list(turns)
        for name in names if number % 2 == 0 else names[::-1]:
            found[name].append(turns[name]())
    return found


def seconds_of(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def second_of_two(action: Callable[[], object]) -> Turn:
    """A turn that counts the second of two calls: the first pays for the other side's traces in caches and memory."""

    def turn() -> float:
        action()
        return seconds_of(action)

    return turn


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """One ratio a round, of what was measured side by side."""
    return [numerator / denominator for numerator, denominator in zip(above, below, strict=True)]


def answer_of(program: Sequence[str], *, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The one line of JSON that a turn in a process of its own prints; RuntimeError with its output if it fails.

    `environment` is added to that of this process.
    """
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(program, cwd=PROJECT, env=variables, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or len(lines) != 1:
        raise RuntimeError(f"{' '.join(program)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads(lines[0])
