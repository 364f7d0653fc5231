"""Whether the loss curves of two sides, trained from the same seeds, are one curve within what seeds scatter.

Judged are the means over the whole curve, and every turn of it, since curves that cross have equal means. Of many turns
one differs by chance alone, so the limit of each is divided by their number (Bonferroni).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CHANCE = 0.01
"""How often equal curves may be called different by chance alone: by their means, and once more by all their turns."""
LEAST_SEEDS = 3

Curve = Sequence[float]
"""Mean loss a picture in each turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Losses of one side less those of the other, seed by seed."""

    mean: float
    error: float
    """Standard error of the mean; NaN for a single seed."""
    chance: float
    """How often seeds alone make a mean as far from 0, in [0, 1]."""

    @classmethod
    def of(cls, ours: Sequence[float], other: Sequence[float]) -> "Difference":
        found = [a - b for a, b in zip(ours, other, strict=True)]
        mean = statistics.fmean(found)
        if len(found) < 2:
            return cls(mean=mean, error=math.nan, chance=1.0)
        error = statistics.stdev(found) / math.sqrt(len(found))
        return cls(mean=mean, error=error, chance=chance_beyond(mean, error, degrees=len(found) - 1))

    def __str__(self) -> str:
        return f"{self.mean:+.4f}" + ("" if math.isnan(self.error) else f" ± {self.error:.4f}")


def chance_beyond(mean: float, error: float, *, degrees: int) -> float:
    """How often Student's t is by chance as far from 0 as mean / error, to either side; no difference at all is 1.

    The sums for whole degrees of freedom are those of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3
    and 26.7.4.
    """
    angle = math.atan2(abs(mean), error * math.sqrt(degrees))
    odd = degrees % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for number in range(1 + odd, degrees, 2):
        total += term
        term *= number / (number + 1) * math.cos(angle) ** 2
    within = math.sin(angle) * total
    if odd:
        within = 2 / math.pi * (angle + within)
    return max(0.0, 1 - within)


def compare(pairs: Sequence[tuple[Curve, Curve]], *, sides: tuple[str, str]) -> str:
    """Print the mean curves of both sides, of which `pairs` has one for each seed; in words, whether they are one."""
    turns = [[(ours[turn], other[turn]) for ours, other in pairs] for turn in range(len(pairs[0][0]))]
    means = [(statistics.fmean(ours), statistics.fmean(other)) for ours, other in pairs]
    print(f"| turn | loss, {sides[0]} | loss, {sides[1]} | difference over seeds: mean, standard error |")
    print("|---|---|---|---|")
    differences = [_print_row(str(number), losses) for number, losses in enumerate(turns, start=1)]
    return verdict(_print_row("all", means), differences, seeds=len(pairs))


def _print_row(name: str, losses: Sequence[tuple[float, float]]) -> Difference:
    """Of the two sides' losses, a pair for each seed."""
    ours, other = zip(*losses, strict=True)
    difference = Difference.of(ours, other)
    print(f"| {name} | {statistics.fmean(ours):.4f} | {statistics.fmean(other):.4f} | {difference} |")
    return difference


def verdict(whole: Difference, turns: Sequence[Difference], *, seeds: int) -> str:
    """In words, with the turn that chance explains least."""
    if seeds < LEAST_SEEDS:
        return f"{seeds} seeds are too few to compare loss curves"
    number, worst = min(enumerate(turns, start=1), key=lambda turn: turn[1].chance)
    limit = CHANCE / len(turns)
    equal = whole.chance >= CHANCE and worst.chance >= limit
    return (
        f"loss curves {'equal within noise' if equal else 'DIFFERENT beyond noise'} over {seeds} seeds: mean "
        f"difference {whole} (p {whole.chance:.2g}, limit {CHANCE:.2g}); of {len(turns)} turns number {number} "
        f"differs most: {worst} (p {worst.chance:.2g}, limit {limit:.2g})"
    )
