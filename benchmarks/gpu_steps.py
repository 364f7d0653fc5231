"""What a form of the training step costs once and saves each time on this machine's GPU.

    uv run python -m benchmarks.gpu_steps

Each way trains the default recipe several times over random pictures: the first time pays for recording the step as a
CUDA graph and for the compiler, the later ones do not. A way pays after its own cost when its first training is the
shortest. What `train.deterministic` takes is the difference to "CUDA graphs", since it records the same step.

Each way has a process and a compiler's cache of its own: none finds what another compiled or set up. One alone:

    uv run python -m benchmarks.gpu_steps --way "CUDA graphs"
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import new_parser, positive
from benchmarks.gpu_training import Trainer, recipe_on_gpu
from benchmarks.pairs import answer_of
from benchmarks.result import Spread
from cifarflow import errors
from cifarflow.compute.choices import choose_device
from cifarflow.config import Config

WAYS: dict[str, dict[str, object]] = {
    "one kernel after the other": {"cuda_graphs": False},
    "CUDA graphs": {"cuda_graphs": True},
    "deterministic, CUDA graphs": {"cuda_graphs": True, "deterministic": True},
    "compiled": {"cuda_graphs": False, "compile": True},
    "compiled, CUDA graphs": {"cuda_graphs": True, "compile": True},
}
HEAD = (
    "| way | first training, s | later ones, s: median (min to max) | peak memory, GiB |\n|---|---|---|---|"
)
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What was measured of one way."""

    first_seconds: float
    later_seconds: list[float]
    peak_gib: float
    """Of the GPU's memory; 0 on a processor."""

    def row(self, way: str) -> str:
        spread = Spread.of(self.later_seconds)
        later = f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"
        return f"| {way} | {self.first_seconds:.2f} | {later} | {self.peak_gib:.2f} |"


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--recipe", default="cifar94", help="(default cifar94)")
    parser.add_argument("--again", type=positive, default=5, help="trainings after the first (default 5)")
    parser.add_argument(
        "--way", choices=list(WAYS), help="measure this one, in this process; answers in JSON"
    )
    arguments = parser.parse_args()
    if arguments.way:
        config = recipe_on_gpu(arguments.recipe, **WAYS[arguments.way])
        print(json.dumps(asdict(measure_way(config, again=arguments.again))))
        return
    _, device = choose_device("cuda")  # which refuses where there is no GPU
    print(HEAD, flush=True)
    for way in WAYS:
        options = ["--recipe", arguments.recipe, "--again", str(arguments.again), "--way", way]
        found = Found(**answer_with_empty_caches([sys.executable, "-m", "benchmarks.gpu_steps", *options]))
        print(found.row(way), flush=True)
    print(f"{device}, torch {torch.__version__}, recipe {arguments.recipe}")


def measure_way(config: Config, *, again: int, count: int | None = None) -> Found:
    """Train by `config` once and `again` times more, over `count` random pictures, or as many as the recipe has."""
    trainer = Trainer.over_random_pictures(config, count=count)
    device = trainer.fit.task.compute.device
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    first, *later = [trainer.train(seed=seed).seconds for seed in range(again + 1)]
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else 0
    return Found(first_seconds=first, later_seconds=later, peak_gib=peak / GIB)


def answer_with_empty_caches(program: Sequence[str]) -> dict[str, Any]:
    """What `program` answers when no earlier process has compiled anything for it."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": str(Path(folder) / "triton")}
        return answer_of(program, environment=caches)


if __name__ == "__main__":
    sys.exit(errors.run(main))
