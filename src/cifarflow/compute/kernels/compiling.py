"""How the loops are compiled, and kept for the next process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import torch
from numba.core import config

config.THREADING_LAYER = "omp"  # pyright: ignore[reportAttributeAccessIssue] - others take twice the time
OPTIONS = {"nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy"}
"""Products and sums may be fused, but never put in another order, so that processors of one kind agree to the bit."""

part = numba.njit(**OPTIONS)
"""Of a kernel: compiled with it."""


def kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Compile at the first call, or load what was compiled before; where no folder can hold it, compile each time.

    numba looks for changes in the file of a function only, not in those it imports, so the name has a digest of all.
    """
    function.__qualname__ += f"_{_digest()}"
    try:
        return _as_many_threads_as_torch(numba.njit(function, cache=True, parallel=True, **OPTIONS))
    except RuntimeError:  # neither this folder nor the user's can be written
        return _as_many_threads_as_torch(numba.njit(function, parallel=True, **OPTIONS))


def _as_many_threads_as_torch(compiled: Callable[..., None]) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        numba.set_num_threads(min(torch.get_num_threads(), config.NUMBA_NUM_THREADS))  # pyright: ignore[reportAttributeAccessIssue]
        compiled(*arguments)

    return call


def _start_threads() -> None:
    """Have numba start its threads now. That sets torch's number of them, as both use one runtime, so set it back."""
    threads = torch.get_num_threads()
    numba.set_num_threads(1)
    torch.set_num_threads(threads)


def _digest() -> str:
    """Of the code in this folder."""
    whole = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:12]


_start_threads()
