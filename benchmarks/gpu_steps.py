"""What recording a step as a CUDA graph, or compiling it, costs once and saves each time, on this machine's GPU.

    uv run python -m benchmarks.gpu_steps

Each way trains the default recipe several times over random pictures: the first time pays for the recording and the
compiler, the later ones do not. A way pays after its own cost when its first training is the shortest.
"""

import statistics
import sys

import torch

from benchmarks.command import new_parser, positive
from benchmarks.gpu_training import Trainer, recipe_on_gpu
from cifarflow import errors

WAYS: dict[str, dict[str, object]] = {
    "one kernel after the other": {"cuda_graphs": False},
    "CUDA graphs": {"cuda_graphs": True},
    "compiled": {"cuda_graphs": False, "compile": True},
    "compiled, CUDA graphs": {"cuda_graphs": True, "compile": True},
}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--recipe", default="cifar94", help="(default cifar94)")
    parser.add_argument("--again", type=positive, default=5, help="trainings after the first (default 5)")
    arguments = parser.parse_args()
    configs = {way: recipe_on_gpu(arguments.recipe, **changes) for way, changes in WAYS.items()}
    print("| way | first training, s | later ones, s: median (min to max) | peak memory, GiB |")
    print("|---|---|---|---|", flush=True)
    for way, config in configs.items():
        trainer = Trainer.over_random_pictures(config)  # which refuses where there is no GPU
        torch.cuda.reset_peak_memory_stats()
        first, *later = [trainer.train(seed=seed).seconds for seed in range(arguments.again + 1)]
        peak = torch.cuda.max_memory_allocated() / 2**30
        spread = f"{statistics.median(later):.3f} ({min(later):.3f} to {max(later):.3f})"
        print(f"| {way} | {first:.2f} | {spread} | {peak:.2f} |", flush=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, recipe {arguments.recipe}")


if __name__ == "__main__":
    sys.exit(errors.run(main))
