"""A training that saves nothing, for the benchmarks that time its steps."""

import math
from pathlib import Path
from typing import Any

from cifarflow.training.checkpoint import Checkpoints


class NoCheckpoints(Checkpoints):
    """Those of a training that nobody would go on with: none is due, none is written, none is there."""

    def __init__(self) -> None:
        super().__init__(folder=Path("nowhere"), interval_seconds=math.inf)

    def save(self, state: dict[str, Any], *, step: int) -> Path:
        return self.folder
