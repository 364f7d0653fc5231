"""Random numbers as functions of counters, so that a resumed run draws exactly what an uninterrupted one draws."""

import hashlib

import torch


def seed_of(purpose: str, *counters: int) -> int:
    """A seed in [0, 2^63) that depends on `purpose` and `counters` (seed, epoch, step ...) alone."""
    text = "/".join([purpose, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator with the seed of `purpose` and `counters`, so it depends on nothing drawn before."""
    return torch.Generator().manual_seed(seed_of(purpose, *counters))
