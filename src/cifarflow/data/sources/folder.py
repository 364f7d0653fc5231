"""Own pictures from data/images: checked and packed into one tar, later scaled to squares and split."""

import hashlib
import io
import shlex
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from cifarflow import files
from cifarflow.data.holdout import stratified_holdout
from cifarflow.data.packed import Split
from cifarflow.data.preflight import Picture, check_pictures
from cifarflow.data.raw import RawDataset
from cifarflow.data.sources.source import FetchContext, ReadContext
from cifarflow.errors import DataIntegrityError, MissingInputError
from cifarflow.inference.pictures import read_picture
from cifarflow.workspace import Workspace

TEST_STREAM = 2
SHOWN_FOLDERS = 12


def fetch(context: FetchContext) -> str:
    """Pack the checked pictures as they are, with pictures.json beside them; equal pictures give equal bytes.

    Raises DataIntegrityError with every fault, and then packs nothing.
    """
    raw, images = context.workspace.raw, context.workspace.images
    if context.workspace.is_temporary and not any(images.glob("[!.]*")):
        raise DataIntegrityError(_without_pictures(context.workspace))
    with files.atomic_open(_tar(raw)) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        pictures = check_pictures(images, progress=context.progress, keep=_adder(tar))
    files.write_json(_list(raw), {"pictures": [asdict(picture) for picture in pictures]})
    classes = {picture.label for picture in pictures}
    return f"packed {len(pictures):,} pictures of {len(classes)} classes"


def read(context: ReadContext) -> RawDataset:
    """Pictures as squares of `folder.image_size` pixels; a test split is drawn where the folder has none.

    Sides are scaled apart (squashed), as the exported model does it. Raises DataIntegrityError or
    MissingInputError.
    """
    pictures = _read_list(_list(context.raw))
    classes = tuple(sorted({picture.label for picture in pictures}))
    everything = _read_all(_tar(context.raw), pictures, classes=classes, size=context.folder.image_size)
    splits = np.array([picture.split or "train" for picture in pictures])
    names = ("train", "validation", "test")
    train, validation, test = (_select(everything, splits == name) for name in names)
    if len(test.labels) == 0:
        kept, held = stratified_holdout(
            train.labels, fraction=context.folder.test_fraction, seed=context.seed, stream=TEST_STREAM
        )
        train, test = _select(train, kept), _select(train, held)
    has_validation = len(validation.labels) > 0
    return RawDataset(
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        classes=classes,
        validation_images=validation.images if has_validation else None,
        validation_labels=validation.labels if has_validation else None,
    )


def _without_pictures(workspace: Workspace) -> str:
    """What to do in the checkout of an experiment: DVC copies folders to it that are not there yet, as this one is."""
    images = workspace.images.relative_to(workspace.root)
    inside = sorted(path.name for path in (workspace.home / images).glob("[!.]*"))
    copies = " ".join(f"-C {shlex.quote((images / name).as_posix())}" for name in inside[:SHOWN_FOLDERS])
    more = f" ... and so on for all {len(inside)}" if len(inside) > SHOWN_FOLDERS else ""
    return (
        f"{workspace.images} has no pictures: this is the checkout of an experiment, and Git does not hold them. Leave "
        f"--temp (or --queue) out, or let DVC bring the folders along: `uv run dvc exp run --temp {copies}{more}`."
    )


def _tar(raw: Path) -> Path:
    return raw / "pictures.tar"


def _list(raw: Path) -> Path:
    return raw / "pictures.json"


def _adder(tar: tarfile.TarFile) -> Callable[[str, bytes], None]:
    """Adds a picture without owner, mode or time, which would differ from machine to machine."""

    def add(path: str, content: bytes) -> None:
        header = tarfile.TarInfo(path)
        header.size = len(content)
        tar.addfile(header, io.BytesIO(content))

    return add


def _read_list(path: Path) -> list[Picture]:
    if not path.is_file():
        raise MissingInputError(path, made_by="download")
    content: Any = files.read_json(path)
    try:
        return [Picture(**fields) for fields in content["pictures"]]
    except (KeyError, TypeError) as error:
        raise DataIntegrityError(f"{path} is not a list of pictures: {error!r}. {_MAKE_ANEW}") from None


def _read_all(path: Path, pictures: list[Picture], *, classes: tuple[str, ...], size: int) -> Split:
    """All pictures in the order of the list, which is that of the tar."""
    if not path.is_file():
        raise MissingInputError(path, made_by="download")
    images = np.empty((len(pictures), size, size, 3), dtype=np.uint8)
    labels = np.array([classes.index(picture.label) for picture in pictures], dtype=np.int64)
    with path.open("rb") as stream:
        for index, content in enumerate(_contents(stream, pictures, path)):
            images[index] = _square(read_picture(content, name=pictures[index].path), size)
    return Split(images=images, labels=labels)


def _contents(stream: BinaryIO, pictures: list[Picture], path: Path) -> Iterator[bytes]:
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for picture in pictures:
                member = tar.next()
                content = tar.extractfile(member) if member is not None and member.isreg() else None
                found = content.read() if content is not None else b""
                if hashlib.sha256(found).hexdigest() != picture.sha256:
                    raise DataIntegrityError(f"{picture.path} in {path} is not what was packed. {_MAKE_ANEW}")
                yield found
    except tarfile.TarError as error:
        raise DataIntegrityError(f"{path} is broken: {error}. {_MAKE_ANEW}") from None


_MAKE_ANEW = "Delete data/raw and run `uv run dvc repro download`."


def _square(picture: np.ndarray, size: int) -> np.ndarray:
    """Pillow's bilinear filter looks at all pixels that it merges, so fine patterns do not alias."""
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR))


def _select(split: Split, chosen: np.ndarray) -> Split:
    return Split(images=split.images[chosen], labels=split.labels[chosen])
