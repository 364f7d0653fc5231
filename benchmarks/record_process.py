"""The public record's steps in a process of their own, which has the system's allocator as its own script would have.

The stages set theirs (cifarflow/allocator.py) for a whole process: one process for both sides would change both.
"""

import subprocess
import sys
from types import TracebackType

import torch

from benchmarks import airbench94
from benchmarks.pairs import Turn, second_of_two
from benchmarks.random_task import random_task
from benchmarks.setting import PROJECT, recipe_on_cpu
from cifarflow.allocator import WITHOUT_LIMIT, keep_freed_memory

KEEP = "--keep-freed-memory"


class RecordProcess:
    """Takes a step when asked to, else waits; ends with the block."""

    def __init__(self, *, keeps_freed_memory: bool = False) -> None:
        program = [sys.executable, "-m", "benchmarks.record_process", *[KEEP] * keeps_freed_memory]
        self._process = subprocess.Popen(
            program, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "RecordProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def turn(self, number: int) -> Turn:
        """Seconds of step `number` of the training, the second time that it is taken."""
        return lambda: self._seconds(number)

    def _seconds(self, number: int) -> float:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the record's process ended with {self._process.wait()}; its words are above")
        return float(answer)


def answer_steps() -> None:
    """In the process: for each number of a step that comes in, the seconds that it takes go out."""
    task = random_task(recipe_on_cpu("cifar94"), count=airbench94.BATCH_SIZE)
    reference = airbench94.Reference(task.compute)
    batch = torch.arange(airbench94.BATCH_SIZE)

    def step(number: int) -> None:
        images = task.augmentation(batch, epoch=0, step=0)
        pixels = task.preprocess(32)(images).contiguous(memory_format=torch.channels_last)
        reference.step(pixels, task.train.labels[batch], number=number)

    for line in sys.stdin:
        number = int(line)
        print(second_of_two(lambda: step(number))(), flush=True)  # noqa: B023 - called before the next one


if __name__ == "__main__":
    if KEEP in sys.argv:
        keep_freed_memory(block_bytes=WITHOUT_LIMIT)  # its tensors have up to 230 MB
    answer_steps()
