"""What a stage is made from, as DVC records it: when the stage ends.

DVC looks at params, code and data after the command, not before. So a stage whose inputs were edited while it ran would
be recorded, and brought out of the run cache ever after, as the result of params or code that it never saw. It fails
in place of that, and loses nothing.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from cifarflow.config import flatten, read_yaml
from cifarflow.errors import InputsChangedError
from cifarflow.workspace import Workspace

CODE = ("src/", "stages/")
SHOWN = 5


@contextlib.contextmanager
def unchanged(stage: str, workspace: Workspace) -> Iterator[None]:
    """Raises InputsChangedError after the block when what DVC will record of `stage` is not what it was before."""
    before = _recorded(stage, workspace)
    yield
    after = _recorded(stage, workspace)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise InputsChangedError(
            f"{', '.join(changed[:SHOWN])}{more} changed while {stage} ran, so its results are not those of what lies "
            f"here now, and DVC must not record them as that. `uv run dvc repro` runs {stage} again with the new ones; "
            "put the old ones back first to keep these results (a training then ends at once). To edit while "
            "something trains: `uv run dvc exp run --temp`, which has a copy."
        )


def code_digest(workspace: Workspace, stage: str) -> str:
    """Digest of the files of code that dvc.yaml names as deps of `stage` (a test holds that list to the imports)."""
    digest = hashlib.sha256()
    for path in _code_files(workspace.root, _entry(workspace, stage)["deps"]):
        digest.update(path.relative_to(workspace.root).as_posix().encode() + b"\0")
        digest.update(_code(path) + b"\0")
    return digest.hexdigest()


def _recorded(stage: str, workspace: Workspace) -> dict[str, object]:
    """Params by dotted key, the bytes of each file of code, size and time of each file of data."""
    entry = _entry(workspace, stage)
    keys = tuple(f"{key}." for key in entry["params"])
    params = {
        f"{workspace.params.name}: {name}": value
        for name, value in flatten(read_yaml(workspace.params))
        if f"{name}.".startswith(keys)
    }
    code = {path: _code(path) for path in _code_files(workspace.root, entry["deps"])}
    data = {path: _stamp(path) for path in _data_files(workspace.root, entry["deps"])}
    files = {path.relative_to(workspace.root).as_posix(): found for path, found in {**code, **data}.items()}
    return {**params, **files}


def _entry(workspace: Workspace, stage: str) -> dict[str, list[str]]:
    return read_yaml(workspace.pipeline)["stages"][stage]


def _code_files(root: Path, deps: Iterable[str]) -> list[Path]:
    found: set[Path] = set()
    for dep in deps:
        if dep.startswith(CODE):
            path = root / dep
            found.update(path.rglob("*.py") if path.is_dir() else [path])
    return sorted(found)


def _data_files(root: Path, deps: Iterable[str]) -> Iterator[Path]:
    for dep in deps:
        if not dep.startswith(CODE):
            path = root / dep
            yield from path.rglob("*") if path.is_dir() else [path]


def _code(path: Path) -> bytes:
    return path.read_bytes().replace(b"\r\n", b"\n")


def _stamp(path: Path) -> tuple[int, int] | None:
    """None where nothing is; a folder's own time says no more than its files' names do."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (0, 0) if path.is_dir() else (found.st_size, found.st_mtime_ns)
