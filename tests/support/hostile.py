"""What attacks look like, and a way to run a command that measures what it took."""

import os
import struct
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

MEASURED = Path(__file__).with_name("measured.py")
PROMISED_BYTES = 2 << 30
"""No input makes a command take more memory than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a process ended; `peak_bytes` is the most memory that it held at once."""

    code: int
    out: str
    err: str
    peak_bytes: int


def run_python(script: str, *arguments: str | Path, folder: Path) -> Ended:
    """Run a module, or a file that ends in .py, as a process of its own and wait for it."""
    with tempfile.TemporaryDirectory() as notes:
        peak = Path(notes) / "peak"
        command = [sys.executable, str(MEASURED), str(peak), script, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        return Ended(code=done.returncode, out=done.stdout, err=done.stderr, peak_bytes=int(peak.read_text()))


def cifarflow(*arguments: str | Path, folder: Path) -> Ended:
    """The command as a user starts it."""
    return run_python("cifarflow.cli", *arguments, folder=folder)


def one_line(text: str) -> str:
    """The only line of `text`; fails when there are more, or when it holds what a terminal would obey."""
    (line,) = text.splitlines()
    assert line.isprintable(), ascii(line)
    return line


class Exploit:
    """Pickled, it makes a folder as soon as somebody unpickles it."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(
    width: int, height: int, *, bits: int = 8, colour: int = 2, content: bytes = b"", extra: bytes = b""
) -> bytes:
    """A PNG that says what it is told to; `content` is the deflated pixels, `extra` chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", content) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def black(rows: int, row_bytes: int) -> bytes:
    """The deflated pixels of a PNG of zeros: a thousandth of their size."""
    packer = zlib.compressobj(1)
    row = bytes(1 + row_bytes)
    return b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
