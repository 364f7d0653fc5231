"""How a process gets its memory: what it has freed is kept for its next use, not given back to the system."""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt(3)
LARGEST = 2**31 - 1  # bytes: what a C int holds
SETTINGS_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors; whether it does. Elsewhere nothing is done, and little is lost.

    By default glibc returns large blocks to the system, so a network's activations are made of new pages in each step,
    which the system fills with zeros one fault at a time: 6,000 to 21,000 faults a micro-batch of the default recipe,
    for 8 to 25 % of its time (docs/experiments.md, 26 November 2026). What is used at most stays as it was.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in SETTINGS_OF_THE_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(name, LARGEST) for name in (TRIM_THRESHOLD, MMAP_THRESHOLD))
