"""One way from a picture file to pixels, for the preflight, the packed data set and the predictor alike."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cifarflow.errors import DataIntegrityError

# Named, so that a file can't choose a rarer decoder (EPS would start Ghostscript). JPEG includes phones' MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
# At this size Pillow itself begins to warn of decompression bombs; 3 bytes a pixel make it 256 MiB.
MAX_PIXELS = 89_478_485
# Decoding takes 7 to 12 bytes a pixel, measured, and with these formats 18, 22 and 29: they get fewer pixels, by these.
DEAR_FORMATS = {"WEBP": 2, "AVIF": 3, "JPEG2000": 3}
MAX_SIDE = 65_535  # that of a JPEG
MAX_BYTES = 256 << 20
STRIP_PIXELS = 1 << 22
# A graph holds several float copies of what it is given, 36 bytes a pixel.
MAX_GRAPH_SIDE = 2048


def read_picture(source: Path | bytes, *, name: str) -> np.ndarray:
    """The picture as an upright RGB array, uint8 `[H, W, 3]`, the same for every kind of file.

    EXIF rotation is applied; transparency is laid over white; grey, palette, CMYK and 16-bit pixels become
    8-bit RGB; of an animation the first frame counts; colour profiles are not applied. Raises
    DataIntegrityError, which calls the picture `name`.
    """
    content = source if isinstance(source, bytes) else picture_bytes(source, name=name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which does not change the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_size(image, name=name)
                ImageOps.exif_transpose(image, in_place=True)
                return _pixels(image)
    except DataIntegrityError:
        raise
    except UnidentifiedImageError:
        raise DataIntegrityError(f"{name} is not a picture that can be read{_guess(content)}.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataIntegrityError(f"{name} has more than {MAX_PIXELS:,} pixels. Scale it down.") from None
    except Exception as error:  # on broken bytes decoders raise nearly anything: OSError, SyntaxError ...
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataIntegrityError(f"{name} is broken: {reason}. Save it anew or remove it.") from None


def fit_for_graph(picture: np.ndarray) -> np.ndarray:
    """A picture of at most MAX_GRAPH_SIDE pixels a side: each longer side is averaged down, apart from the other.

    The graph scales both sides to a few hundred pixels, so it sees no difference.
    """
    height, width = (min(side, MAX_GRAPH_SIDE) for side in picture.shape[:2])
    if (height, width) == picture.shape[:2]:
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def picture_bytes(path: Path, *, name: str) -> bytes:
    """The file's content. Raises DataIntegrityError when it cannot be read or is too large for a picture."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataIntegrityError(f"{name} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_BYTES:
        raise DataIntegrityError(f"{name} is larger than {MAX_BYTES >> 20} MiB. Scale it down.")
    return content


def _check_size(image: Image.Image, *, name: str) -> None:
    most = MAX_PIXELS // DEAR_FORMATS.get(image.format or "", 1)
    if image.width * image.height > most:
        size = f"{image.width} x {image.height}"
        raise DataIntegrityError(f"{name} is {size}, more than {most:,} pixels. Scale it down.")
    if max(image.size) > MAX_SIDE:
        raise DataIntegrityError(f"{name} is {max(image.size):,} pixels long; at most {MAX_SIDE:,} are read.")


def _pixels(image: Image.Image) -> np.ndarray:
    """In strips: the steps between a large picture and its pixels would take several times its size at once."""
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    step = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, step):
        rows = slice(top, min(top + step, image.height))
        pixels[rows] = np.asarray(_as_rgb(image.crop((0, rows.start, image.width, rows.stop))))
    return pixels


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floats, which have no agreed range")
    if image.mode.startswith("I"):
        return _from_16_bit(image).convert("RGB")
    if image.has_transparency_data:
        overlay = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", overlay.size, "white"), overlay).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """The upper eight of sixteen bits; Pillow's own conversion would clip everything above 255 to white."""
    return Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))


def _guess(content: bytes) -> str:
    if not content:
        return ": the file is empty"
    if content[4:8] == b"ftyp":  # the container of AVIF, and of HEIC, the default of many phones
        avif = content[8:12] in {b"avif", b"avis"}
        return ": as an AVIF it is broken" if avif else ": it looks like HEIC or a video. Export it as JPEG"
    return f". Known formats: {', '.join(FORMATS)}"
