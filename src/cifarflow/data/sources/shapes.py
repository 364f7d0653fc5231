"""Drawn figures in ten classes: nothing to download, and hard enough that a network must really learn."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cifarflow import files
from cifarflow.config.schema import ShapesConfig
from cifarflow.data.packed import Split, read_split, write_split
from cifarflow.data.raw import RawDataset
from cifarflow.data.sources.source import FetchContext, ReadContext
from cifarflow.errors import MissingInputError

FOLDER = "shapes"
DRAWN_AT_ONCE = 250
DRAWN_PIXELS = (
    DRAWN_AT_ONCE * 64 * 64
)  # of larger ones fewer: all that is computed of 250 of 512 px takes 8 GB
NOISE = 8.0
LEAST_CONTRAST = 110.0

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Signed distance (about) of points x, y to a figure of radius 1: negative inside."""


def fetch(context: FetchContext) -> str:
    """Draw the pictures that `data.shapes` asks for; one seed gives one set of bytes."""
    config, folder = context.shapes, context.workspace.raw / FOLDER
    for stream, (name, count) in enumerate((("train", config.train_count), ("test", config.test_count))):
        write_split(folder / f"{name}.safetensors", draw(count, config=config, stream=stream))
    files.write_json(folder / "shapes.json", {"classes": list(FIGURES)})
    return f"drew {config.train_count:,} + {config.test_count:,} shapes"


def read(context: ReadContext) -> RawDataset:
    """Raises MissingInputError or DataIntegrityError when the drawn files are not whole."""
    folder = context.raw / FOLDER
    train, test = (_read_drawn(folder / f"{name}.safetensors") for name in ("train", "test"))
    return RawDataset(
        train_images=train.images,
        train_labels=train.labels,
        test_images=test.images,
        test_labels=test.labels,
        classes=tuple(FIGURES),
    )


def draw(count: int, *, config: ShapesConfig, stream: int) -> Split:
    """`count` pictures, the classes in turn; `stream` keeps two sets of one seed apart."""
    size = config.image_size
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(config.seed, spawn_key=(stream,))))
    labels = np.arange(count, dtype=np.int64) % len(FIGURES)
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    at_once = min(DRAWN_AT_ONCE, DRAWN_PIXELS // size**2)
    for start in range(0, count, at_once):
        chunk = slice(start, start + at_once)
        images[chunk] = _draw_chunk(labels[chunk], size, random)
    return Split(images=images, labels=labels)


def _draw_chunk(labels: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """uint8 `[n, size, size, 3]`: each figure somewhere, turned, in its own size and colours."""
    count = len(labels)
    radius = random.uniform(0.3, 0.46, (count, 1, 1)) * size
    angle = random.uniform(0, 2 * np.pi, (count, 1, 1))
    room = np.maximum(size / 2 - radius, 0)
    centre_x = size / 2 + room * random.uniform(-1, 1, (count, 1, 1))
    centre_y = size / 2 + room * random.uniform(-1, 1, (count, 1, 1))
    rows, columns = np.mgrid[0:size, 0:size] + 0.5
    right, down = (columns - centre_x) / radius, (rows - centre_y) / radius
    x = np.cos(angle) * right + np.sin(angle) * down
    y = np.cos(angle) * down - np.sin(angle) * right
    inside = np.empty((count, size, size))
    for label, distance in enumerate(FIGURES.values()):
        chosen = labels == label
        # One pixel of soft edge, as a camera would give.
        inside[chosen] = np.clip(0.5 - distance(x[chosen], y[chosen]) * radius[chosen], 0, 1)
    figure, ground = _colours(count, random)
    slope = random.uniform(-30, 30, (count, 2, 1, 1, 1))
    shade = slope[:, 0] * (columns / size - 0.5)[..., None] + slope[:, 1] * (rows / size - 0.5)[..., None]
    picture = ground + (figure - ground) * inside[..., None] + shade
    picture += NOISE * random.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _colours(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two colours `[n, 1, 1, 3]` in [0, 255] that are at least LEAST_CONTRAST apart in some channel."""
    ground = random.uniform(0, 255, (count, 3))
    figure = random.uniform(0, 255, (count, 3))
    gap = np.abs(figure - ground).max(axis=1, keepdims=True)
    away = np.where(ground < 128, ground + LEAST_CONTRAST, ground - LEAST_CONTRAST)
    figure = np.where(gap < LEAST_CONTRAST, away, figure)
    return figure[:, None, None], ground[:, None, None]


def _read_drawn(path: Path) -> Split:
    if not path.is_file():
        raise MissingInputError(path, made_by="download")
    return read_split(path)


# The figures, each of radius 1 around 0 --------------------------------------------------------------------


def _polygon(corners: int) -> Distance:
    """A regular polygon as the farthest of its edges."""
    turns = 2 * np.pi * np.arange(corners) / corners

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        edges = [np.cos(turn) * x + np.sin(turn) * y for turn in turns]
        return np.maximum.reduce(edges) - np.cos(np.pi / corners)

    return distance


def _box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 1


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: the edge from a tip at radius 1 to a dent at 0.4, mirrored and turned."""
    sector = np.abs((np.arctan2(y, x) % (2 * np.pi / 5)) - np.pi / 5)
    reach = np.hypot(x, y)
    along, across = reach * np.cos(np.pi / 5 - sector), reach * np.sin(np.pi / 5 - sector)
    dent_x, dent_y = 0.4 * np.cos(np.pi / 5), 0.4 * np.sin(np.pi / 5)
    length = np.hypot(1 - dent_x, dent_y)
    return (dent_y * (along - 1) + (1 - dent_x) * across) / length


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(_box(x, y, 0.95, 0.28), _box(x, y, 0.28, 0.95))


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.78) - 0.22


def _diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slim, since a diamond with right angles is a turned square."""
    return (0.5 * np.abs(x) + np.abs(y) - 0.5) / np.hypot(1, 0.5)


def _bars(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Three of them, side by side."""
    return np.maximum(_box(x, y, 0.75, 0.75), np.abs((x + 0.3) % 0.6 - 0.3) - 0.15)


def _checker(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A square of two by two fields, of which two on a diagonal are drawn."""
    return np.maximum(_box(x, y, 0.85, 0.85), np.where(x * y > 0, -1, 1) * np.minimum(np.abs(x), np.abs(y)))


FIGURES: dict[str, Distance] = {
    "circle": _circle,
    "square": _polygon(4),
    "triangle": _polygon(3),
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
    "hexagon": _polygon(6),
    "bars": _bars,
    "checker": _checker,
}
