"""Known files out of a tar.gz that nobody vouches for: each is checked before it reaches the disk."""

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cifarflow import files
from cifarflow.errors import DataIntegrityError

STREAM_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Published:
    """What a file is known to be."""

    size: int
    sha256: str


def check_content(content: bytes, published: Published, *, name: str) -> None:
    """Raises DataIntegrityError that names the file, what was expected and what was found."""
    if len(content) != published.size:
        raise DataIntegrityError(f"{name} has {len(content):,} bytes, as published {published.size:,}.")
    found = hashlib.sha256(content).hexdigest()
    if found != published.sha256:
        expected = f"expected {published.sha256}, found {found}"
        raise DataIntegrityError(f"{name} is not as published: SHA-256 {expected}.")


def extract_verified(archive: Path, folder: Path, *, prefix: str, published: Mapping[str, Published]) -> None:
    """Write the `published` files, found under `prefix/` in `archive`, to `folder`.

    Names are compared, never used as paths; what else the archive holds is skipped. Raises DataIntegrityError
    when a file is missing, doubled, a link, or not as published, or when the archive is broken.
    """
    # Packing only costs a little beyond the files; a bomb stops here.
    limit = 2 * sum(file.size for file in published.values()) + (8 << 20)
    names = {f"{prefix}/{name}": name for name in published}
    missing = dict(published)
    try:
        with (
            gzip.open(archive) as stream,
            tarfile.open(fileobj=_Bounded(stream, limit), mode="r|", bufsize=STREAM_BLOCK_BYTES) as tar,
        ):
            for member in tar:
                name = names.get(member.name.removeprefix("./"))
                if name is None:
                    continue
                if name not in missing:
                    raise DataIntegrityError(f"{archive} holds {member.name} twice.")
                content = _content(tar, member, missing.pop(name))
                check_content(content, published[name], name=f"{member.name} in {archive}")
                files.write_bytes(folder / name, content)
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, ValueError, OverflowError) as error:
        raise DataIntegrityError(f"{archive} is not a whole tar.gz archive: {error}.") from None
    if missing:
        raise DataIntegrityError(f"{archive} lacks {', '.join(f'{prefix}/{name}' for name in missing)}.")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, published: Published) -> bytes:
    stream = tar.extractfile(member) if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else None
    if stream is None:
        raise DataIntegrityError(f"{member.name} is a link or special file in the archive, no regular file.")
    if member.size != published.size:
        raise DataIntegrityError(f"{member.name} has {member.size:,} bytes, as published {published.size:,}.")
    return stream.read(published.size)


class _Bounded(io.RawIOBase):
    """Reads on until `limit` bytes came out, so that a small archive cannot unpack into an endless one."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int = -1, /) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise DataIntegrityError("the archive unpacks into far more than the published files.")
        return content
