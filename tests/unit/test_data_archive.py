"""Archives that attack: nothing reaches the disk but known names with known bytes."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from cifarflow.data.archive import Published, extract_verified
from cifarflow.errors import DataIntegrityError

CONTENT = {"one": b"first", "two": b"second!"}
PUBLISHED = {name: Published(len(body), hashlib.sha256(body).hexdigest()) for name, body in CONTENT.items()}
Entry = tuple[str, bytes | bytearray, bytes]
GOOD: list[Entry] = [(f"known/{name}", body, tarfile.REGTYPE) for name, body in CONTENT.items()]


def packed(path: Path, entries: list[Entry]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, body, kind in entries:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "/etc/passwd"
            member.size = len(body) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(body))
    return path


def extract(archive: Path) -> dict[str, bytes]:
    folder = archive.parent / "out"
    extract_verified(archive, folder, prefix="known", published=PUBLISHED)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("lead", ["", "./"])
def test_known_files_come_out_as_published(tmp_path: Path, lead: str) -> None:
    assert (
        extract(packed(tmp_path / "a", [(lead + name, body, kind) for name, body, kind in GOOD])) == CONTENT
    )


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "known/../../evil", "known/evil", "evil", "known/sub/one"]
)
def test_other_names_are_skipped(tmp_path: Path, name: str) -> None:
    assert extract(packed(tmp_path / "a", [(name, b"x", tarfile.REGTYPE), *GOOD])) == CONTENT
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "out", *CONTENT}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices_under_a_known_name_are_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(DataIntegrityError, match="known/one is a link or special file"):
        extract(packed(tmp_path / "a", [("known/one", b"", kind), GOOD[1]]))
    assert not (tmp_path / "out" / "one").exists()


def test_wrong_bytes_are_named_with_both_digests(tmp_path: Path) -> None:
    with pytest.raises(DataIntegrityError) as caught:
        extract(packed(tmp_path / "a", [("known/one", b"FIRST", tarfile.REGTYPE), GOOD[1]]))
    for part in ("known/one", PUBLISHED["one"].sha256, hashlib.sha256(b"FIRST").hexdigest()):
        assert part in str(caught.value)


def test_wrong_size_is_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(DataIntegrityError, match=r"known/one has 100,000 bytes, as published 5\."):
        extract(packed(tmp_path / "a", [("known/one", bytes(100_000), tarfile.REGTYPE)]))


def test_doubled_and_missing_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataIntegrityError, match="known/one twice"):
        extract(packed(tmp_path / "a", [GOOD[0], *GOOD]))
    with pytest.raises(DataIntegrityError, match="lacks known/two"):
        extract(packed(tmp_path / "b", GOOD[:1]))


@pytest.mark.parametrize("name", ["unknown", "known/one"])
def test_bomb_stops_early(tmp_path: Path, name: str) -> None:
    """A header that promises 64 MiB of zeros, which pack into 64 kB."""
    with pytest.raises(DataIntegrityError, match=r"unpacks into far more|as published"):
        extract(packed(tmp_path / "a", [(name, bytearray(64 << 20), tarfile.REGTYPE), *GOOD]))


def test_bomb_in_a_long_name_stops_early(tmp_path: Path) -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    (tmp_path / "a").write_bytes(
        gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(16 << 20), compresslevel=1)
    )
    with pytest.raises(DataIntegrityError, match=r"unpacks into far more"):
        extract(tmp_path / "a")


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip", "empty", "no tar"])
def test_broken_archives_are_named(tmp_path: Path, damage: str) -> None:
    whole = packed(tmp_path / "a", GOOD).read_bytes()
    middle = len(whole) // 2
    broken = {
        "cut": whole[:-20],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        "no gzip": b"<html>",
        "empty": b"",
        "no tar": gzip.compress(b"hello" * 1000),
    }
    (tmp_path / "a").write_bytes(broken[damage])
    with pytest.raises(DataIntegrityError, match=r"a is not a whole tar\.gz archive|lacks"):
        extract(tmp_path / "a")
