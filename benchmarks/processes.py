"""Training by 2 processes (torchrun, gloo, half of the processors each) against 1 process with all of them.

Where there are two GPUs: by 2 processes with one each (nccl) against 1 process with one.

Both take the same steps of the default recipe: the same batch of the same pictures, by cifarflow's own Step. Each turn
starts its processes anew, lets three steps of each kind pass and times the next ones. The figure is the efficiency:
pictures a second of two processes over those of one, over the recipe's whole schedule.

    uv run python -m benchmarks.processes
"""

import json
import sys
from collections.abc import Callable, Sequence

import torch

from benchmarks import command
from benchmarks.command import Effort
from benchmarks.gpu_training import seconds_to_end
from benchmarks.pairs import alternate, answer_of, ratios
from benchmarks.random_task import new_fit, random_task
from benchmarks.recipe_time import our_schedule, our_steps, training_seconds
from benchmarks.result import Result, Spread
from benchmarks.setting import recipe
from cifarflow.allocator import keep_freed_memory
from cifarflow.compute.processes import joined
from cifarflow.compute.processor import usable_processors

GOAL = 0.9
PROCESSES = 2
STEPS_A_KIND, STEPS_A_KIND_QUICK = 3, 1
UNTIMED = 3  # on a GPU the first runs as it is, the second is recorded, the third is the first replay
MODULE = "benchmarks.processes"
TURN = "--turn"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES))


def measure(effort: Effort) -> Result:
    if not on_gpus() and usable_processors() < PROCESSES:
        raise SystemExit(f"{usable_processors()} processor(s) cannot run {PROCESSES} processes side by side")
    steps = STEPS_A_KIND_QUICK if effort.quick else STEPS_A_KIND
    turn = ["-m", MODULE, TURN, str(steps)]
    sides = {
        "1 process": lambda: pictures_a_second([sys.executable, *turn]),
        "2 processes": lambda: pictures_a_second([sys.executable, *TORCHRUN, *turn]),
    }
    rates = alternate(sides, rounds=effort.rounds)
    for side, values in rates.items():
        print(f"{side}: {Spread.of(values)} pictures a second")
    ideal = PROCESSES if on_gpus() else 1  # two GPUs are twice the machine, two halves of a processor are not
    efficiency = Spread.of(ratios(rates["2 processes"], [ideal * rate for rate in rates["1 process"]]))
    alone = "1 GPU, times 2" if on_gpus() else f"1 process with {usable_processors()} threads"
    return Result(
        name=f"training by {'2 GPUs' if on_gpus() else '2 processes'}, pictures a second",
        against=f"{alone}, same batch",
        goal=GOAL,
        at_least=True,
        unit="x",
        value=efficiency.median,
        low=efficiency.low,
        high=efficiency.high,
        rounds=effort.rounds,
        note=f"2 x {torch.cuda.get_device_name()}, torch {torch.__version__}" if on_gpus() else "",
    )


def on_gpus() -> bool:
    """Whether there is a GPU for each process."""
    return torch.cuda.device_count() >= PROCESSES


def pictures_a_second(program: Sequence[str]) -> float:
    """What the processes of one turn say; raises RuntimeError with their output when they fail."""
    return answer_of(program)["pictures_a_second"]


def take_turn(steps: int) -> None:
    """In each process of a turn: time the recipe's kinds of steps together; the main one says the rate."""
    with joined() as processes:
        config = recipe("cifar94", device="cuda" if on_gpus() else "cpu")
        torch.manual_seed(0)  # the same random pictures in every process
        task = random_task(config, processes=processes)
        seconds = {}
        device = task.compute.device
        for kind, step in our_steps(new_fit(task, config), config).items():

            def action(step: Callable[[], None] = step) -> None:
                step()
                processes.any(False, device)  # as the loop asks after each step whether to stop

            times = [seconds_to_end(action, device) for _ in range(UNTIMED + steps)]
            seconds[kind] = times[UNTIMED:]
        if processes.is_main:
            schedule = our_schedule(task, config)
            pictures = sum(kind.pictures * steps for kind, steps in schedule.items())
            rate = pictures / training_seconds(seconds, schedule)
            print(json.dumps({"pictures_a_second": rate, "threads": torch.get_num_threads()}), flush=True)


if __name__ == "__main__":
    if TURN in sys.argv:
        keep_freed_memory()  # as stages/start.py does
        take_turn(int(sys.argv[-1]))
    else:
        command.run(measure, description=__doc__, rounds=5, quick_rounds=1)
