"""What a benchmark found, as one small value that a person, a table and the runner can read."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """The middle and the ends of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Raises ValueError when there is nothing to describe."""
        found = list(values)
        if not found:
            raise ValueError("no measurement to take the median of")
        return cls(median=statistics.median(found), low=min(found), high=max(found))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One figure with its goal. `value` is the median, `low` and `high` are the ends over `rounds` rounds."""

    name: str
    against: str
    goal: float
    at_least: bool
    """Whether larger is better; otherwise the goal is a limit."""
    unit: str
    """`x` for a ratio."""
    value: float
    low: float
    high: float
    rounds: int
    note: str = ""
    """What a reader must know to read the figure, such as random pictures in place of real ones."""

    @property
    def met(self) -> bool:
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    @property
    def goal_text(self) -> str:
        return f"{'>=' if self.at_least else '<='} {_with_unit(f'{self.goal:g}', self.unit)}"

    @property
    def measured_text(self) -> str:
        rounds = f"{self.rounds} round{'s' if self.rounds > 1 else ''}"
        value = _with_unit(f"{self.value:.4g}", self.unit)
        return f"{value} ({self.low:.4g} to {self.high:.4g}, {rounds})"

    @property
    def sentence(self) -> str:
        verdict = "met" if self.met else "NOT met"
        note = f"; {self.note}" if self.note else ""
        return f"{self.name}, against {self.against}: {self.measured_text}; goal {self.goal_text}: {verdict}{note}"

    def to_json(self) -> str:
        """One line; `met` goes along for other readers."""
        return json.dumps({**asdict(self), "met": self.met}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Result":
        """`met` follows from the rest, so it is not read."""
        fields = json.loads(line)
        del fields["met"]
        return cls(**fields)


def _with_unit(number: str, unit: str) -> str:
    return number if unit == "x" else f"{number} {unit}"
