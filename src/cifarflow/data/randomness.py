"""Random numbers as functions of counters, so that a resumed run draws exactly what an uninterrupted one draws."""

import hashlib

import torch


def generator(purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator that depends on `purpose` and `counters` (seed, epoch, step ...) and on nothing drawn before."""
    text = "/".join([purpose, *map(str, counters)])
    return torch.Generator().manual_seed(
        int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    )
