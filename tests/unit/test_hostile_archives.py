"""Archives that are made to hang, to fill the memory, to write elsewhere or to run code: each is one fault.

The plainer ones (other names, links, devices, cut and flipped bytes) are in test_data_archive.py.
"""

import gzip
import hashlib
import io
import pickle
import random
import tarfile
from pathlib import Path

import pytest

from cifarflow.data.archive import Published, extract_verified
from cifarflow.data.downloading import Patience
from cifarflow.data.progress import plain_lines
from cifarflow.data.sources import FetchContext, cifar10
from cifarflow.errors import DataIntegrityError
from cifarflow.workspace import Workspace
from tests.support.hostile import PROMISED_BYTES, Exploit, one_line, run_python
from tests.support.small import small_config

KNOWN = f"{cifar10.FOLDER}/data_batch_1"
BLOCK = 512


def header(name: str = "x", *, kind: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def altered(block: bytes, start: int, content: bytes) -> bytes:
    """A tar header with other bytes in it and a checksum that is right again."""
    changed = bytearray(block)
    changed[start : start + len(content)] = content
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def padded(content: bytes) -> bytes:
    return content.ljust(-(-len(content) // BLOCK) * BLOCK, b"\0")


def extended(**fields: str) -> bytes:
    """A PAX header with these fields, each record beginning with its own length."""
    records = b""
    for key, value in fields.items():
        rest = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(rest) + 2
        length += len(str(length)) - 2 if len(str(length)) > 2 else 0
        records += str(length).encode() + rest
    return header("p", kind=tarfile.XHDTYPE, size=len(records)) + padded(records)


CONTINUED_SPARSE = altered(header(KNOWN, kind=tarfile.GNUTYPE_SPARSE), 482, b"\1")
ATTACKS = {
    "two hundred thousand empty entries": header() * 200_000,
    "a size of 10^26 bytes": altered(header("other"), 124, b"\x80" + b"\x7f" * 11) * 3,
    "a size below zero": altered(header("other"), 124, b"\xff" * 12) * 3,
    "a known file of size below zero": altered(header(KNOWN), 124, b"\xff" * 12) * 3,
    "names that announce names": (header(kind=tarfile.GNUTYPE_LONGNAME, size=3) + padded(b"abc")) * 5000,
    "headers that announce headers": extended(path="abcd") * 5000,
    "a header of 64 MiB": header(kind=tarfile.XHDTYPE, size=64 << 20) + bytes(64 << 20),
    "a size in words": extended(size="9" * 20) + header(KNOWN),
    "a size that is no number": extended(size="many") + header(KNOWN),
    "a map of holes": header(KNOWN, kind=tarfile.GNUTYPE_SPARSE, size=1 << 33) + bytes(BLOCK),
    "a map of holes without end": CONTINUED_SPARSE + (bytes(504) + b"\1" + bytes(7)) * 40_000,
    "holes by another header": extended(GNU__sparse__major="1", GNU__sparse__minor="0")
    + header(KNOWN, size=BLOCK)
    + b"9999999999\n".ljust(BLOCK, b"1"),
    "names that are no text": altered(header(), 0, b"\xff\xfe\x1b[31m") * 3,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_crafted_archive_is_one_fault_at_once(tmp_path: Path, attack: str) -> None:
    archive = tmp_path / "a"
    archive.write_bytes(gzip.compress(ATTACKS[attack], compresslevel=1))
    with pytest.raises(DataIntegrityError) as caught:
        extract_verified(
            archive,
            tmp_path / "out",
            prefix=cifar10.FOLDER,
            published={"data_batch_1": Published(5, "0" * 64)},
        )
    one_line(str(caught.value))
    assert list(tmp_path.iterdir()) == [archive]


BOMB = """
import sys
from pathlib import Path
from cifarflow.data.archive import extract_verified
from cifarflow.data.sources.cifar10 import FOLDER, PUBLISHED
extract_verified(Path(sys.argv[1]), Path(sys.argv[2]), prefix=FOLDER, published=PUBLISHED)
"""


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_a_bomb_beside_the_real_sizes_takes_no_memory(tmp_path: Path, kind: bytes) -> None:
    """300 MiB of one header, within the limit that files of CIFAR-10's size need."""
    with gzip.open(tmp_path / "a", "wb", compresslevel=1) as stream:
        stream.write(header("k", kind=kind, size=300 << 20))
        for _ in range(300):
            stream.write(b"a" * (1 << 20))
    (tmp_path / "bomb.py").write_text(BOMB)
    ended = run_python(str(tmp_path / "bomb.py"), tmp_path / "a", tmp_path / "out", folder=tmp_path)
    assert "DataIntegrityError" in ended.err
    assert ended.peak_bytes < PROMISED_BYTES / 8


@pytest.mark.parametrize(
    "page", [b"<html>Please log in</html>", b"\x80\x04.", b"PK\x03\x04", b"\x1f\x8b", b""]
)
def test_another_kind_of_file_is_one_fault(tmp_path: Path, page: bytes) -> None:
    (tmp_path / "a").write_bytes(page)
    with pytest.raises(DataIntegrityError, match=r"a is not a whole tar\.gz archive"):
        extract_verified(tmp_path / "a", tmp_path / "out", prefix="known", published={})


def test_every_flipped_byte_is_a_fault_or_harmless(tmp_path: Path) -> None:
    """300 of the bytes of a sound archive, one after the other."""
    body = b"content of the only file"
    published = {"one": Published(len(body), hashlib.sha256(body).hexdigest())}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        member = tarfile.TarInfo("known/one")
        member.size = len(body)
        tar.addfile(member, io.BytesIO(body))
    sound, refused = stream.getvalue(), 0
    places = random.Random(0).choices(range(len(sound)), k=300)
    for place in places:
        flipped = bytearray(sound)
        flipped[place] ^= 1 << (place % 8)
        (tmp_path / "a").write_bytes(flipped)
        try:
            extract_verified(tmp_path / "a", tmp_path / "out", prefix="known", published=published)
        except DataIntegrityError:
            refused += 1
        else:
            assert (tmp_path / "out" / "one").read_bytes() == body
    assert refused > 200


def test_a_crafted_batch_file_is_refused_before_it_is_unpickled(tmp_path: Path) -> None:
    """As long as the published file, so that only its digest tells."""
    code = pickle.dumps(Exploit(tmp_path / "proof"), protocol=2)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz", compresslevel=1) as tar:
        for name, file in cifar10.PUBLISHED.items():
            member = tarfile.TarInfo(f"{cifar10.FOLDER}/{name}")
            member.size = file.size
            tar.addfile(member, io.BytesIO(code.ljust(file.size, b"\0")))
            break
    config = small_config().data
    context = FetchContext(
        workspace=Workspace.at(tmp_path, {}),
        environ={"CIFAR10_ARCHIVE": "cifar.tar.gz"},
        progress=plain_lines,
        cifar10=config.cifar10,
        shapes=config.shapes,
        patience=Patience(),
    )
    with pytest.raises(DataIntegrityError, match=r"batches\.meta in .* is not as published: SHA-256"):
        cifar10.fetch(context)
    assert not (tmp_path / "proof").exists()
    assert not any((tmp_path / "data").rglob("*.meta"))
    pickle.loads(code)
    assert (tmp_path / "proof").exists(), "the attack itself works"
