"""One way from a picture file to pixels, for the preflight, the packed data set and the predictor alike."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cifarflow.errors import DataIntegrityError

# Named, so that a file can't choose a rarer decoder (EPS would start Ghostscript). JPEG includes phones' MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
# At this size Pillow itself begins to warn of decompression bombs; 3 bytes a pixel make it 256 MiB.
MAX_PIXELS = 89_478_485
MAX_BYTES = 256 << 20


def read_picture(source: Path | bytes, *, name: str) -> np.ndarray:
    """The picture as an upright RGB array, uint8 `[H, W, 3]`, the same for every kind of file.

    EXIF rotation is applied; transparency is laid over white; grey, palette, CMYK and 16-bit pixels become
    8-bit RGB; of an animation the first frame counts; colour profiles are not applied. Raises
    DataIntegrityError, which calls the picture `name`.
    """
    content = source if isinstance(source, bytes) else picture_bytes(source, name=name)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(image, name=name)
            return np.array(_as_rgb(ImageOps.exif_transpose(image)), dtype=np.uint8)
    except DataIntegrityError:
        raise
    except UnidentifiedImageError:
        raise DataIntegrityError(f"{name} is not a picture that can be read{_guess(content)}.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataIntegrityError(f"{name} has more than {MAX_PIXELS:,} pixels. Scale it down.") from None
    except Exception as error:  # on broken bytes decoders raise nearly anything: OSError, SyntaxError ...
        reason = str(error) or type(error).__name__
        raise DataIntegrityError(f"{name} is broken: {reason}. Save it anew or remove it.") from error


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
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise DataIntegrityError(f"{name} is {size}, more than {MAX_PIXELS:,} pixels. Scale it down.")


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
    levels = np.asarray(image).astype(np.int64)
    return Image.fromarray(np.clip(levels >> 8, 0, 255).astype(np.uint8))


def _guess(content: bytes) -> str:
    if not content:
        return ": the file is empty"
    if content[4:8] == b"ftyp":  # the container of HEIC, the default of many phones
        return ": it looks like HEIC or a video. Export it as JPEG"
    return f". Known formats: {', '.join(FORMATS)}"
