"""CIFAR-10, the Python version: 60,000 pictures of 32 pixels in ten classes, from whatever address."""

import io
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from filelock import FileLock, Timeout

from cifarflow.data.archive import Published, check_content, extract_verified
from cifarflow.data.downloading import AddressError, PartFile, download, is_url
from cifarflow.data.raw import RawDataset
from cifarflow.data.sources.source import FetchContext, ReadContext
from cifarflow.errors import (
    DataIntegrityError,
    DownloadError,
    MissingInputError,
    printable,
    without_secrets,
)

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
VARIABLE = "CIFAR10_ARCHIVE"
PER_BATCH = 10_000
SIZE = 32

TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
TEST_BATCH = "test_batch"
META = "batches.meta"

# Size in bytes and SHA-256 of each file of 2009: an archive may be packed anew, its files may not differ.
PUBLISHED = {
    META: Published(158, "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb"),
    "data_batch_1": Published(31_035_704, "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd"),
    "data_batch_2": Published(31_035_320, "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8"),
    "data_batch_3": Published(31_035_999, "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9"),
    "data_batch_4": Published(31_035_696, "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b"),
    "data_batch_5": Published(31_035_623, "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154"),
    "readme.html": Published(88, "4d1c3fb199d6a183ae03f5162b469d7bc04edf2fad9547bd5f224271d52f98e5"),
    TEST_BATCH: Published(31_035_526, "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831"),
}


def fetch(context: FetchContext) -> str:
    """Bring the eight files into the raw folder: from CIFAR10_ARCHIVE if set, else the first good address.

    What was downloaded once is kept: own pictures in data/images make DVC run this stage, and empty its folder, again.

    Raises DownloadError when no address gives them, DataIntegrityError when a file that CIFAR10_ARCHIVE names
    is something else.
    """
    folder = context.workspace.raw / FOLDER
    with _alone(context.workspace.downloads):
        if is_complete(folder):
            return f"CIFAR-10 was in {folder} already, verified"
        archive = context.environ.get(VARIABLE, "")
        local = _local_path(archive, context.workspace.home) if archive else None
        if local:
            _extract_own(local, folder)
            origin = str(local)
        elif not archive and _from_kept(context.workspace.downloads / ARCHIVE, folder):
            origin = "the archive that was downloaded before"
        else:
            origin = _from_first(archive, context=context, folder=folder)
    return f"CIFAR-10 from {origin}, {len(PUBLISHED)} files verified"


def read(context: ReadContext) -> RawDataset:
    """All 60,000 pictures. Nothing is unpickled before its digest is right; DataIntegrityError otherwise."""
    folder = context.raw / FOLDER
    meta = load_pickle(_verified(folder / META))
    images = np.empty((len(TRAIN_BATCHES) * PER_BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    labels = np.empty(len(images), dtype=np.int64)
    for index, name in enumerate(TRAIN_BATCHES):
        rows = slice(index * PER_BATCH, (index + 1) * PER_BATCH)
        images[rows], labels[rows] = _read_batch(folder / name)
    test_images, test_labels = _read_batch(folder / TEST_BATCH)
    return RawDataset(
        train_images=images,
        train_labels=labels,
        test_images=np.ascontiguousarray(test_images),
        test_labels=test_labels,
        classes=tuple(name.decode() for name in meta[b"label_names"]),
    )


def is_complete(folder: Path) -> bool:
    """Whether all eight files are there, as published."""
    try:
        for name in PUBLISHED:
            _verified(folder / name)
    except (MissingInputError, DataIntegrityError):
        return False
    return True


# Fetching ---------------------------------------------------------------------------------------------------


def _alone(downloads: Path) -> FileLock:
    """A second download waits for the first, which may leave it nothing to do; a killed one holds no lock."""
    downloads.mkdir(parents=True, exist_ok=True)
    lock = FileLock(downloads / "lock")
    try:
        lock.acquire(timeout=0)
        lock.release()
    except Timeout:
        logging.getLogger(__name__).warning("another download is running; waiting until it ends")
    return lock


def _local_path(address: str, home: Path) -> Path | None:
    """The file that a path (relative to the repository) or a file:// address means; None for a URL."""
    if is_url(address):
        return None
    try:
        parts = urlsplit(address)
    except ValueError:  # such as file://[
        return home / address
    text = url2pathname(parts.path) if parts.scheme == "file" else address
    return home / Path(text).expanduser()


def _extract_own(archive: Path, folder: Path) -> None:
    if not archive.is_file():
        raise DataIntegrityError(f"{VARIABLE} names {archive}, which is no file. Give the .tar.gz.")
    try:
        extract_verified(archive, folder, prefix=FOLDER, published=PUBLISHED)
    except DataIntegrityError as error:
        raise DataIntegrityError(f"{error} Mend or unset {VARIABLE}.") from None


def _from_kept(archive: Path, folder: Path) -> bool:
    """Whether an archive from an earlier download is there and gives the files; one that does not is removed."""
    if not archive.is_file():
        return False
    try:
        extract_verified(archive, folder, prefix=FOLDER, published=PUBLISHED)
    except DataIntegrityError:
        archive.unlink()
        return False
    return True


def _from_first(archive: str, *, context: FetchContext, folder: Path) -> str:
    """The first address whose archive holds the published files."""
    reasons = []
    for url in (archive,) if archive else context.cifar10.urls:
        try:
            _from_url(url, context=context, folder=folder)
            for other in context.cifar10.urls:  # what came from one that failed is of no use any more
                PartFile.of(other, context.workspace.downloads).discard()
            return without_secrets(url)
        except (AddressError, DataIntegrityError) as error:
            reasons.append(printable(f"{without_secrets(url)}: {error}"))
    raise DownloadError(
        "\n  ".join(["no address gave CIFAR-10:", *reasons])
        + "\nTry again (a broken download goes on where it stopped), or get cifar-10-python.tar.gz in "
        f"another way and set {VARIABLE} to its path."
    )


def _from_url(url: str, *, context: FetchContext, folder: Path) -> None:
    if not is_url(url):
        raise AddressError("is no http or https address (params.yaml: data.cifar10.urls)")
    part = download(url, context.workspace.downloads, progress=context.progress, patience=context.patience)
    try:
        extract_verified(part.path, folder, prefix=FOLDER, published=PUBLISHED)
    except DataIntegrityError:
        part.discard()
        raise
    part.keep_as(context.workspace.downloads / ARCHIVE)


# Reading ----------------------------------------------------------------------------------------------------


def _verified(path: Path) -> bytes:
    if not path.is_file():
        raise MissingInputError(path, made_by="download")
    content = path.read_bytes()
    check_content(content, PUBLISHED[path.name], name=str(path))
    return content


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = load_pickle(_verified(path))
    images = batch[b"data"].reshape(PER_BATCH, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    return images, np.array(batch[b"labels"], dtype=np.int64)


def load_pickle(content: bytes) -> Any:
    """What a batch file holds: plain containers and arrays. Raises DataIntegrityError on anything else."""
    return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


def _make_dtype(name: Any, align: int, copy: int) -> np.dtype:
    """The files of 2009 give 0 and 1 where NumPy now wants booleans."""
    return np.dtype(name, align=bool(align), copy=bool(copy))


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Callable[..., Any]:
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            # NumPy's maker of empty arrays, which has moved since 2009; an array itself says where it is.
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # type: ignore[dict-item]
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _make_dtype,
        }
        if (module, name) not in allowed:
            raise DataIntegrityError(f"a batch file asks for {module}.{name}, which no picture needs.")
        return allowed[module, name]
