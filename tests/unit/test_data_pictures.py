"""One picture of each kind that people have, and of each kind that attacks."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifarflow.errors import DataIntegrityError
from cifarflow.inference import pictures
from cifarflow.inference.pictures import read_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(content: bytes) -> np.ndarray:
    picture = read_picture(content, name="p")
    assert picture.dtype == np.uint8
    return picture


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_kinds_give_the_same_pixels(kind: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(encode(Image.fromarray(PIXELS), kind))
    assert np.array_equal(read_picture(tmp_path / "p", name="p"), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "JPEG2000", "GIF"])
def test_lossy_kinds_give_the_same_shape(kind: str) -> None:
    assert read(encode(Image.fromarray(PIXELS), kind)).shape == PIXELS.shape


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    start = Image.fromarray(PIXELS).convert("L" if mode == "I;16" else "RGB")
    assert read(encode(start.convert(mode), "TIFF")).shape == PIXELS.shape


def test_rotation_in_exif_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(Image.fromarray(PIXELS), exif=exif)
    assert np.array_equal(read(content), np.rot90(PIXELS, -1))


def test_transparency_is_laid_over_white() -> None:
    clear = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 0, np.uint8)])
    assert (read(encode(Image.fromarray(clear))) == 255).all()
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert read(encode(palette))[0, 0].tolist() == [255, 0, 0]
    assert (read(encode(palette, transparency=1)) == 255).all()


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    levels = np.arange(0, 65536, 128, dtype=np.uint16).reshape(16, 32)
    assert np.array_equal(read(encode(Image.fromarray(levels)))[..., 0], levels >> 8)


def test_cmyk_white_is_white() -> None:
    assert (read(encode(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")) == 255).all()


def test_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    assert read(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [
        255,
        0,
        0,
    ]


def bomb(side: int) -> bytes:
    """A PNG that only claims to be `side` pixels wide and high."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "the file is empty"),
        (b"hello", "Known formats: JPEG"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture that can be read"),
        (encode(Image.fromarray(PIXELS))[:300], "p is broken: image file is truncated"),
        (encode(Image.fromarray(PIXELS), "JPEG")[:300], "p is broken"),
        (encode(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF"), "pixels are floats"),
        (bomb(9_600), "more than 89,478,485 pixels"),
        (bomb(60_000), "more than 89,478,485 pixels"),
    ],
    ids=["empty", "text", "heic", "eps", "cut png", "cut jpeg", "floats", "large", "bomb"],
)
def test_what_is_no_sound_picture_is_named(content: bytes, text: str) -> None:
    with pytest.raises(DataIntegrityError, match=text):
        read(content)


def test_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataIntegrityError, match="x cannot be read: No such file"):
        read_picture(tmp_path / "x", name="x")
    monkeypatch.setattr(pictures, "MAX_BYTES", 10)
    (tmp_path / "x").write_bytes(bytes(11))
    with pytest.raises(DataIntegrityError, match="larger than"):
        read_picture(tmp_path / "x", name="x")
