"""Own pictures, looked at one by one before anything is trained: every fault in one message."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cifarflow.data.progress import Progress
from cifarflow.errors import DataIntegrityError
from cifarflow.inference.pictures import picture_bytes, read_picture

SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
SYSTEM_NAMES = {"Thumbs.db", "desktop.ini", "__MACOSX"}
LEAST_SIDE = 16
LEAST_PER_CLASS = 3
SHOWN_FAULTS = 20
LAYOUT = "Put pictures as <class>/<picture>, or train|val|test/<class>/<picture>."
NOT_IN_GIT = (
    "Git does not hold them: in a clone of somebody's project, get them from him, or go on without: "
    "`uv run dvc checkout`, then `uv run dvc repro --downstream train`."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a picture lies; `path` is relative, with `/`. `split` is None in a folder without own splits."""

    file: Path
    path: str
    split: str | None
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture that was decoded; `width` and `height` in pixels, upright."""

    path: str
    split: str | None
    label: str
    sha256: str
    bytes: int
    width: int
    height: int


def check_pictures(
    images: Path, *, progress: Progress, keep: Callable[[str, bytes], object] | None = None
) -> list[Picture]:
    """Every picture under `images`, in order of path; `keep` gets the path and the bytes of each sound one.

    Raises DataIntegrityError with all faults: unreadable, tiny, doubled or misplaced files, and classes that
    cannot be learnt.
    """
    places, faults = find_pictures(images)
    pictures: list[Picture] = []
    with progress("checking pictures", total=sum(place.file.stat().st_size for place in places)) as advance:
        for place in places:
            try:
                content = picture_bytes(place.file, name=place.path)
                pictures.append(_examine(place, content))
            except DataIntegrityError as error:
                faults.append(str(error))
                continue
            if keep is not None:
                keep(place.path, content)
            advance(len(content))
    faults += [*_doubled(pictures), *_unlearnable(places)]
    if faults:
        raise DataIntegrityError(_report(images, faults))
    return pictures


def find_pictures(images: Path) -> tuple[list[Place], list[str]]:
    """All files that lie in a class folder, and the faults of all others; hidden files are skipped."""
    entries = _visible(images) if images.is_dir() else []
    if not entries:
        return [], [f"there are no pictures. {LAYOUT} {NOT_IN_GIT}"]
    # A class may be called `train`, so the layout has splits only when there are folders inside `train`.
    train = images / "train"
    with_splits = train.is_dir() and any(entry.is_dir() for entry in _visible(train))
    found: list[Place | str] = []
    if not with_splits:
        found += _in_classes(images, entries, split=None)
    for entry in entries if with_splits else []:
        if entry.name in SPLITS and entry.is_dir():
            found += _in_classes(images, _visible(entry), split=SPLITS[entry.name])
        else:
            found.append(f"{_shown(entry, images)} stands beside train/, but is none of {', '.join(SPLITS)}.")
    places = [item for item in found if isinstance(item, Place)]
    return places, [item for item in found if isinstance(item, str)]


def _in_classes(images: Path, entries: list[Path], *, split: str | None) -> Iterator[Place | str]:
    """The places in these class folders, and as text what does not belong there."""
    for folder in entries:
        if not folder.is_dir():
            yield f"{_shown(folder, images)} is not inside a class folder. {LAYOUT}"
            continue
        files = _visible(folder)
        if not files:
            yield f"{_shown(folder, images)} is empty. Fill it or remove it."
        for file in files:
            path = file.relative_to(images).as_posix()
            if not path.isprintable():  # such as bytes that are no UTF-8, which no JSON can hold
                yield f"{path!a} has a name with unprintable characters. Rename it."
            elif file.is_file():
                yield Place(file=file, path=path, split=split, label=folder.name)
            elif file.is_dir():
                yield f"{path}/ is a folder inside a class folder. {LAYOUT}"
            else:
                yield f"{path} is a broken link or a special file. Remove it."


def _visible(folder: Path) -> list[Path]:
    """Sorted by name, so that the order is the same on every system."""
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in entries if entry.name not in SYSTEM_NAMES)


def _shown(entry: Path, images: Path) -> str:
    path = entry.relative_to(images).as_posix()
    return ascii(path) if not path.isprintable() else f"{path}/" if entry.is_dir() else path


def _examine(place: Place, content: bytes) -> Picture:
    height, width, _ = read_picture(content, name=place.path).shape
    if min(width, height) < LEAST_SIDE:
        least = f"at least {LEAST_SIDE} pixels a side"
        raise DataIntegrityError(f"{place.path} is {width} x {height} pixels; {least} are needed.")
    return Picture(
        path=place.path,
        split=place.split,
        label=place.label,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        width=width,
        height=height,
    )


def _doubled(pictures: list[Picture]) -> Iterator[str]:
    """A copy in another class is a contradiction; in the same class it could be learnt from and tested on."""
    first: dict[str, str] = {}
    for picture in pictures:
        original = first.setdefault(picture.sha256, picture.path)
        if original != picture.path:
            yield f"{picture.path} is the same file as {original}. Keep one of them."


def _unlearnable(places: list[Place]) -> Iterator[str]:
    """Classes by the files that lie there, so that one broken picture is not two faults."""
    learnt = Counter(place.label for place in places if place.split in (None, "train"))
    if places and len(learnt) < 2:
        yield f"at least two classes are needed, found {', '.join(learnt) or 'none'}. {LAYOUT}"
    for label, count in sorted(learnt.items()):
        if count < LEAST_PER_CLASS:
            yield f"class {label} has {count} to learn from; at least {LEAST_PER_CLASS} pictures are needed."
    held = {(place.split, place.label) for place in places if place.split in ("validation", "test")}
    for split, label in sorted((str(split), label) for split, label in held if label not in learnt):
        yield f"class {label} is in the {split} split, but train/ has no such class."


def _report(images: Path, faults: list[str]) -> str:
    shown = faults[:SHOWN_FAULTS]
    more = [f"... and {len(faults) - len(shown)} more"] if len(faults) > len(shown) else []
    head = f"{images} has {len(faults)} fault{'s' if len(faults) > 1 else ''}; nothing was packed:"
    return "\n  ".join([head, *shown, *more]) + "\nMend these and run the same command again."
