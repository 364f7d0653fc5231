"""Checkpoints from which a killed run goes on: tensors and plain values only, whole or not there at all.

They lie outside DVC's outputs, in a folder named by the run key: DVC deletes a stage's outputs before it starts, and
`persist: true` would switch its run-cache off. A changed parameter, dataset or line of code has another run key, and
so another folder: an old state is never resumed.
"""

import hashlib
import io
import logging
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cifarflow import files

logger = logging.getLogger(__name__)

KEPT = 2
FORMAT = 1


@dataclass(slots=True)
class Checkpoints:
    """The last two states of one run, at most one every `interval_seconds`."""

    folder: Path
    interval_seconds: float
    clock: Callable[[], float] = time.monotonic
    _last_save: float = field(init=False)

    def __post_init__(self) -> None:
        self._last_save = self.clock()

    def is_due(self) -> bool:
        return self.clock() - self._last_save >= self.interval_seconds

    def save(self, state: dict[str, Any], *, step: int) -> Path:
        """Write `state` and drop all but the last two; the file's name ends in the digest of its bytes."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **state}, buffer)
        content = buffer.getvalue()
        path = self.folder / f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
        files.write_bytes(path, content)
        for old in self._newest_first()[KEPT:]:
            old.unlink(missing_ok=True)
        self._last_save = self.clock()
        return path

    def load(self, *, keys: Set[str] = frozenset()) -> dict[str, Any] | None:
        """The newest state that is whole and has `keys`, or None; any other file is passed over with a warning."""
        for path in self._newest_first():
            state = _read(path)
            if isinstance(state, dict) and state.get("format") == FORMAT and keys <= set(state):
                return state
            logger.warning("checkpoint %s is damaged; the one before it is used", path)
        return None

    def newest(self) -> Path | None:
        """The file that was saved last, if one was."""
        return next(iter(self._newest_first()), None)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*-*.pt"), reverse=True)


def _read(path: Path) -> Any:
    """What a checkpoint holds, or None when its bytes are not those that were written or hold more than data."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest()[:16] != path.stem.rsplit("-", 1)[1]:
        return None
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # a forged one: torch refuses code and nonsense, in a dozen different ways
        return None
