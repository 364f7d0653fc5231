"""Which pictures are held out: stratified by class, and the same on every machine for one seed."""

import numpy as np


def stratified_holdout(
    labels: np.ndarray, *, fraction: float, seed: int, stream: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted, disjoint int64 indices (kept, held out) that together are all of `labels`.

    Of each class `fraction`, rounded half up, is held out: at least one picture and never the last one.
    `stream` separates two draws of one seed.
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream,)))
    # Raw bits, not Generator.permutation: NumPy keeps only the streams of bit generators the same for ever.
    rank = bits.random_raw(len(labels))
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(int(len(members) * fraction + 0.5), 1), len(members) - 1)
        held[members[np.argsort(rank[members], kind="stable")[:count]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
