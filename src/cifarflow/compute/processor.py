"""What the processor offers. Asked of the system and of torch, never timed: a busy machine must not change a result."""

import importlib
import math
import os
from collections.abc import Mapping
from pathlib import Path

BF16_UNITS = ("amx_bf16", "avx512_bf16")
CACHED_PIXELS = 128 * 32 * 32
"""Of the pictures in one forward pass, so that its activations stay in the cache; larger ones also want less memory."""


def pictures_at_once(image_size: int) -> int:
    """How many pictures of `image_size` pixels a side a forward pass takes at best, 1 or more."""
    return max(1, CACHED_PIXELS // image_size**2)


def usable_processors() -> int:
    """How many processors this process may use: fewer than there are under `taskset` or a container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _quota())))


def _quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Processors that a container's control group (version 2) grants; infinite where none is set."""
    try:
        granted, period = path.read_text().split()
        return int(granted) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or `max`
        return math.inf


def bf16_units() -> list[str]:
    """Names of the processor's units for products in bf16; without any, bf16 is emulated, slower than float32."""
    return [name for name in BF16_UNITS if capabilities().get(name)]


def numba_has_openmp() -> bool:
    """Whether loops that numba compiles can share their work by OpenMP: it wants the system's GNU library."""
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:
        return False
    return True


def capabilities() -> Mapping[str, object]:
    """Names of instruction sets, and whether the processor has them, as far as torch can tell."""
    import torch  # here: whoever only counts processors starts without it

    known = getattr(torch.cpu, "get_capabilities", None)  # not there in torch 2.11
    return known() if known else {}
