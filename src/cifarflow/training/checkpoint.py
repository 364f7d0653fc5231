"""Checkpoints from which a killed run goes on: tensors and plain values only, whole or not there at all.

They lie outside DVC's outputs, in a folder named by the run key: DVC deletes a stage's outputs before it starts, and
`persist: true` would switch its run-cache off. A changed parameter, dataset or line of code has another run key, and
so another folder: an old state is never resumed.
"""

import hashlib
import io
import logging
import pickletools
import time
import zipfile
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cifarflow import files

logger = logging.getLogger(__name__)

KEPT = 2
FORMAT = 1
CALLED = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2")
"""What the pickle of a state of tensors and plain values calls, beside the types of storages."""


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
            if isinstance(state, dict) and _is_of_this_format(state) and keys <= set(state):
                return state
            logger.warning("checkpoint %s is damaged; the one before it is used", path)
        return None

    def newest(self) -> Path | None:
        """The file that was saved last, if one was."""
        return next(iter(self._newest_first()), None)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*-*.pt"), reverse=True)


def _is_of_this_format(state: dict[str, Any]) -> bool:
    found = state.get("format")
    return (
        type(found) is int and found == FORMAT
    )  # a forged one may hold a tensor, which is neither equal nor not


def _read(path: Path) -> Any:
    """What a checkpoint holds, or None when its bytes are not those that were written or hold more than data."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest()[:16] != path.stem.rsplit("-", 1)[1]:
        return None
    try:
        _check_plain(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # a forged one: torch refuses code and nonsense, in a dozen different ways
        return None


def _check_plain(content: bytes) -> None:
    """Raises ValueError for a file that would take more memory than its own bytes, which `weights_only` allows.

    That is one whose entries are compressed, or whose pickle calls more than what makes tensors of its bytes.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("it unpacks into more than it is")
        (pickled,) = (archive.read(entry) for entry in entries if entry.filename.endswith("/data.pkl"))
    for operation, name, _ in pickletools.genops(pickled):
        if operation.name in ("GLOBAL", "STACK_GLOBAL") and not _makes_a_tensor(str(name)):
            raise ValueError(f"it calls {name}")


def _makes_a_tensor(name: str) -> bool:
    """`name` is `module name`, as pickle's protocol 2 has it, in which torch.save writes."""
    return name in CALLED or (name.startswith("torch ") and name.endswith("Storage"))
