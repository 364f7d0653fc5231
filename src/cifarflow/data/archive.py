"""Known files out of a tar.gz that nobody vouches for: each is checked before it reaches the disk."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cifarflow import files
from cifarflow.errors import DataIntegrityError, printable

STREAM_BLOCK_BYTES = 1 << 20
HEADER_BYTES = 8 << 20  # a name and its like, and blocks that are read ahead
MAX_ENTRIES = 10_000


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
    names = {f"{prefix}/{name}": name for name in published}
    missing = dict(published)
    try:
        for tar, member in _members(archive, limit=2 * sum(file.size for file in published.values())):
            name = names.get(member.name.removeprefix("./"))
            if name is None:
                continue
            if name not in missing:
                raise DataIntegrityError(f"{archive} holds {member.name} twice.")
            content = _content(tar, member, missing.pop(name))
            check_content(content, published[name], name=f"{member.name} in {archive}")
            files.write_bytes(folder / name, content)
    except gzip.BadGzipFile as error:
        raise _not_whole(archive, error) from None
    except (DataIntegrityError, OSError):
        raise
    except Exception as error:  # on broken headers tarfile raises nearly anything
        raise _not_whole(archive, error) from None
    if missing:
        raise DataIntegrityError(f"{archive} lacks {', '.join(f'{prefix}/{name}' for name in missing)}.")


def _not_whole(archive: Path, error: Exception) -> DataIntegrityError:
    reason = printable(str(error).rstrip(".")) or type(error).__name__
    return DataIntegrityError(f"{archive} is not a whole tar.gz archive: {reason}.")


def _members(archive: Path, *, limit: int) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Each entry of the archive, as a stream that ends with a fault where a sound archive would have ended."""
    with gzip.open(archive) as stream:
        bounded = _Bounded(stream, limit=limit + HEADER_BYTES)
        with tarfile.open(fileobj=bounded, mode="r|", bufsize=STREAM_BLOCK_BYTES) as tar:
            for _ in range(MAX_ENTRIES):
                member = tar.next()
                if member is None:
                    return
                bounded.expect(member.size)
                yield tar, member
                if member.size > limit:  # tarfile would skip on for as long as the header says
                    raise DataIntegrityError(_FAR_MORE)
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue] - it would keep them all
            raise DataIntegrityError(f"{archive} has more than {MAX_ENTRIES:,} entries.")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, published: Published) -> bytes:
    stream = tar.extractfile(member) if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else None
    if stream is None:
        raise DataIntegrityError(f"{member.name} is a link or special file in the archive, no regular file.")
    if member.size != published.size:
        raise DataIntegrityError(f"{member.name} has {member.size:,} bytes, as published {published.size:,}.")
    return stream.read(published.size)


_FAR_MORE = "the archive unpacks into far more than the published files."


class _Bounded(io.RawIOBase):
    """Reads on until `limit` bytes came out, or more than one entry can need: a bomb stops here."""

    def __init__(self, stream: gzip.GzipFile, *, limit: int) -> None:
        self._stream = stream
        self._left = limit
        self._leash = HEADER_BYTES

    def expect(self, size: int) -> None:
        """Let through the content of an entry of `size` bytes and the header of the next."""
        self._leash = size + HEADER_BYTES

    def read(self, size: int = -1, /) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        self._leash -= len(content)
        if min(self._left, self._leash) < 0:
            raise DataIntegrityError(_FAR_MORE)
        return content
