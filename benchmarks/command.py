"""The command line that every benchmark has."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import elsewhere
from benchmarks.result import Result
from cifarflow.allocator import keep_freed_memory
from cifarflow.compute.processor import usable_processors
from cifarflow.provenance import processor_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much time to spend."""

    rounds: int
    quick: bool
    """Whether to see that it works and get a first figure, rather than one to quote."""


def run(
    measure: Callable[[Effort], Result], *, description: str | None, rounds: int, quick_rounds: int
) -> None:
    """Measure as the command line says; the result is the last line, in words or (`--json`) as JSON."""
    parser = new_parser(description)
    parser.add_argument(
        "--rounds", type=positive, help=f"rounds of turns (default {rounds}, or {quick_rounds})"
    )
    parser.add_argument("--quick", action="store_true", help=f"{quick_rounds} round(s) and less of each")
    parser.add_argument("--json", action="store_true", help="end with the result as a line of JSON")
    add_keep(parser)
    arguments = parser.parse_args()
    keep_freed_memory()  # as stages/start.py does
    chosen = arguments.rounds or (quick_rounds if arguments.quick else rounds)
    print(
        f"{processor_name()}, {usable_processors()} processors, {chosen} round(s){', quick' * arguments.quick}"
    )
    result = measure(Effort(rounds=chosen, quick=arguments.quick))
    tell(result, arguments)


def add_keep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep",
        choices=[row.name for row in elsewhere.ROWS],
        help="keep the result for this row of docs/benchmarks.md, which is written on another machine",
    )


def tell(result: Result, arguments: argparse.Namespace) -> None:
    """Say the result, and keep it where that is asked for."""
    print(result.sentence)
    if arguments.keep:
        print(f"kept in {elsewhere.keep(arguments.keep, result)}")
    if arguments.json:
        print(result.to_json())


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """Shows `description`, a module's docstring, with its lines as they are."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def positive(text: str) -> int:
    """The type of a command-line option that counts rounds."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} rounds measure nothing; give 1 or more")
    return number
