"""Time of an epoch while MLflow cannot be reached over the time of one while it can.

Each turn is a process of its own that trains a few epochs of the default recipe at 20 pixels, where an epoch is
shortest, with everything that a training reports to switched on, and MLflow's store in one of five states: a SQLite
file; a server that takes connections and never answers; one that refuses them; one that answers 500; a SQLite file that
another program has locked. The figure is the slowest of the four outages, by the time of its epochs over that of the
healthy store's in the same round.

    uv run python -m benchmarks.outage
"""

import contextlib
import http.server
import io
import json
import socket
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from benchmarks import command
from benchmarks.command import Effort
from benchmarks.no_checkpoints import NoCheckpoints
from benchmarks.overhead import fit_for, hard_task
from benchmarks.overhead_costs import recorder_for, tracked, with_own_store
from benchmarks.pairs import alternate, answer_of, ratios, seconds_of
from benchmarks.result import Result, Spread
from benchmarks.setting import recipe_on_cpu
from cifarflow.allocator import keep_freed_memory
from cifarflow.config import Config

GOAL = 1.05
EPOCHS = 4
STEPS_AN_EPOCH, STEPS_AN_EPOCH_QUICK = 12, 2
HEALTHY, SILENT, REFUSING, FAILING, LOCKED = "healthy", "silent", "refusing", "failing", "locked"
OUTAGES = (SILENT, REFUSING, FAILING, LOCKED)
TURN = "--turn"


def measure(effort: Effort) -> Result:
    steps = STEPS_AN_EPOCH_QUICK if effort.quick else STEPS_AN_EPOCH
    seconds = alternate(
        {state: lambda state=state: turn_in_a_process(state, steps) for state in (HEALTHY, *OUTAGES)},
        rounds=effort.rounds,
    )
    found = {state: Spread.of(ratios(seconds[state], seconds[HEALTHY])) for state in OUTAGES}
    for state, times in seconds.items():
        print(f"{state}: {Spread.of(times)} s for {EPOCHS} epochs of {steps} steps")
    for state, spread in found.items():
        print(f"{state} over {HEALTHY}: {spread}")
    worst = max(found.values(), key=lambda spread: spread.median)
    return Result(
        name="epochs while MLflow's server is silent, refuses or answers 500, or its database is locked",
        against="epochs while it answers",
        goal=GOAL,
        at_least=False,
        unit="x",
        value=worst.median,
        low=worst.low,
        high=worst.high,
        rounds=effort.rounds,
    )


def turn_in_a_process(state: str, steps: int) -> float:
    """Seconds of all epochs of one turn; raises RuntimeError with the process's output when it fails."""
    return answer_of([sys.executable, "-m", "benchmarks.outage", TURN, state, str(steps)])["seconds"]


def take_turn(state: str, steps: int) -> None:
    """Train with `steps` steps an epoch, and print the seconds of all epochs, with what is reported after each."""
    recipe = recipe_on_cpu("cifar94")
    train = recipe.train.model_copy(update={"epochs": float(EPOCHS)})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = with_own_store(recipe.model_copy(update={"train": train}), folder)
        make_store(config, folder)
        seconds = train_seconds(config, folder, state, steps)
    print(json.dumps({"seconds": seconds}), flush=True)


def make_store(config: Config, folder: Path) -> None:
    """MLflow's tables, which take seconds to make and can only be made while nothing is wrong."""
    with tracked(config, folder, hard_task(config, steps=1), name="before"):
        pass


def train_seconds(config: Config, folder: Path, state: str, steps: int) -> float:
    task = hard_task(config, steps=steps)
    with contextlib.ExitStack() as store:
        config = store.enter_context(in_state(state, config, folder))
        with tracked(config, folder, task, name="run") as tracker:
            recorder = recorder_for(tracker, config, folder)
            fit = fit_for(task, config, NoCheckpoints(), recorder)
            with contextlib.redirect_stdout(io.StringIO()):
                seconds = seconds_of(fit.run)
            store.close()  # before the tracker waits for the last to be sent
    return seconds


class Failing(http.server.BaseHTTPRequestHandler):
    """A server with a fault of its own."""

    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815 - names that the base class looks for

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what is printed is the answer of a turn."""


def reporting_to(port: int, config: Config) -> Config:
    """With MLflow's server at this port of the machine itself."""
    mlflow = config.tracking.mlflow.model_copy(update={"uri": f"http://127.0.0.1:{port}"})
    tracking = config.tracking.model_copy(update={"mlflow": mlflow})
    return config.model_copy(update={"tracking": tracking})


@contextlib.contextmanager
def in_state(state: str, config: Config, folder: Path) -> Iterator[Config]:
    """The store as asked for while the block runs, and the params that lead to it."""
    if state == SILENT:
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield reporting_to(server.getsockname()[1], config)
    elif state == REFUSING:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        yield reporting_to(port, config)  # where nobody listens any more
    elif state == FAILING:
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield reporting_to(server.server_port, config)
            server.shutdown()
    elif state == LOCKED:
        with contextlib.closing(sqlite3.connect(folder / "mlflow.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield config
    else:
        yield config


if __name__ == "__main__":
    if TURN in sys.argv:
        keep_freed_memory()  # as stages/start.py does
        take_turn(sys.argv[-2], int(sys.argv[-1]))
    else:
        command.run(measure, description=__doc__, rounds=5, quick_rounds=1)
