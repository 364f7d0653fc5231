"""Files that are either whole or not there: atomic writes, digests, JSON and safetensors."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from cifarflow.errors import DataIntegrityError

CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` only when the block ends without an exception.

    The bytes are on disk (fsync) before the name is: a kill leaves the old file or the new one, never half of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # What a kill left of an earlier write: nobody else writes to `path` now.
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.part"):
        left.unlink(missing_ok=True)
    handle, temporary_name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(temporary_name)
    try:
        with naming(path), os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """A write that fails is told with the file's name, which the system does not give: it says which disk is full."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def remove_folder(parent: Path, name: str) -> None:
    """Remove the folder `name` of `parent` where it is there; a name that leads elsewhere is that of none."""
    for folder in parent.glob("*"):
        if folder.name == name:
            shutil.rmtree(folder, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_open(path) as stream:
        stream.write(content)


def write_text(path: Path, text: str) -> None:
    """UTF-8 with `\\n` line ends on every system, so that digests agree."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Sorted keys and a fixed layout: equal content gives equal bytes."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises DataIntegrityError when the file is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataIntegrityError(
            f"{path} is not valid JSON: {error}. Delete it and run the stage again."
        ) from None


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Named arrays as one safetensors file."""
    write_bytes(
        path, safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
    )


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Raises DataIntegrityError when the file is truncated or is no safetensors file."""
    try:
        return safetensors.numpy.load_file(path)
    except (
        safetensors.SafetensorError,
        AttributeError,
        TypeError,
    ) as error:  # the last two: a type NumPy lacks
        raise DataIntegrityError(f"{path} is broken: {error}. Delete it and run the stage again.") from None


def sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(content: Any) -> str:
    """SHA-256 of plain JSON-able values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
