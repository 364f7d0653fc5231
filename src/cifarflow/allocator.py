"""How a process gets its memory: what it has freed is kept for its next use, not given back to the system."""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt(3)
WITHOUT_LIMIT = 2**31 - 1  # bytes: what a C int holds
STEP_BLOCK_BYTES = 64 << 20
"""Larger than any tensor of a pass of the default recipe; what a stage needs once, at its start, is larger still. Wider
recipes have some of twice that size, and were no faster with a limit of 256 MiB or more (27 November 2026)."""
OLD_LIMIT_BYTES = 32 << 20
"""What an older glibc takes at most."""
SETTINGS_OF_THE_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(*, block_bytes: int = STEP_BLOCK_BYTES) -> bool:
    """Let glibc keep freed blocks of up to `block_bytes`; whether it does. On other systems nothing is done.

    By default glibc returns large blocks to the system, so a network's activations are made of new pages in each step,
    which the system fills with zeros one fault at a time: 7,000 to 16,000 faults a micro-batch of the default recipe,
    for 4 to 9 % of its time (docs/experiments.md, 26 November 2026).
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in SETTINGS_OF_THE_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None or not mallopt(TRIM_THRESHOLD, WITHOUT_LIMIT):
        return False
    return any(mallopt(MMAP_THRESHOLD, size) for size in (block_bytes, OLD_LIMIT_BYTES))
