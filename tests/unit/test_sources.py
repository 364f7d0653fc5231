"""CIFAR-10 from every kind of address, and the drawn shapes."""

import hashlib
import http.server
import io
import os
import pickle
import random
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from cifarflow.config.schema import Cifar10Config, FolderConfig, ShapesConfig
from cifarflow.data.archive import Published
from cifarflow.data.downloading import PartFile, Patience
from cifarflow.data.progress import plain_lines
from cifarflow.data.sources import SOURCES, FetchContext, ReadContext, cifar10, shapes
from cifarflow.errors import DataIntegrityError, DownloadError, MissingInputError, UnknownNameError
from cifarflow.workspace import Workspace
from tests.unit.test_download import BRISK, Answer, dripping, full, rest, serving

# Noise, so that an archive of it is 24 kB, and one file that is large and packs into next to nothing.
SMALL = {name: random.Random(name).randbytes(3000) for name in cifar10.PUBLISHED}
SMALL["test_batch"] = b"x" * 100_000
HASTY = Patience(connect_seconds=1, stall_seconds=1)
SHAPES = ShapesConfig(train_count=200, test_count=100, image_size=32, seed=0)


def context(
    root: Path,
    *,
    urls: tuple[str, ...] = ("http://127.0.0.1:9/x",),
    archive: str = "",
    shapes: ShapesConfig = SHAPES,
    patience: Patience = HASTY,
) -> FetchContext:
    return FetchContext(
        workspace=Workspace.at(root, {}),
        environ={"CIFAR10_ARCHIVE": archive},
        progress=plain_lines,
        cifar10=Cifar10Config(urls=urls),
        shapes=shapes,
        patience=patience,
    )


def reading(root: Path) -> ReadContext:
    return ReadContext(
        raw=root / "data" / "raw", seed=1, folder=FolderConfig(image_size=32, test_fraction=0.2)
    )


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive of eight small files that count as the published ones."""
    table = {name: Published(len(body), hashlib.sha256(body).hexdigest()) for name, body in SMALL.items()}
    monkeypatch.setattr(cifar10, "PUBLISHED", table)
    path = tmp_path / "served" / "cifar.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for name, body in SMALL.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return path


@pytest.fixture
def address(archive: Path) -> Iterator[str]:
    """The folder of `archive` over HTTP."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(archive.parent)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetched(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "data/raw/cifar-10-batches-py").iterdir()}


def test_unknown_source_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar10'"):
        SOURCES.get("cifar100")


@pytest.mark.parametrize("form", ["absolute", "relative", "uri", "home"])
def test_own_archive_by_path(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    own = {
        "absolute": str(archive),
        "relative": "served/cifar.tar.gz",
        "uri": archive.as_uri(),
        "home": "~/served/cifar.tar.gz",
    }
    assert str(archive) in cifar10.fetch(context(tmp_path, archive=own[form]))
    assert fetched(tmp_path) == SMALL


def test_own_archive_by_address_goes_before_the_list(address: str, tmp_path: Path) -> None:
    cifar10.fetch(context(tmp_path, archive=f"{address}/cifar.tar.gz"))
    assert fetched(tmp_path) == SMALL


def test_next_address_when_one_fails_and_nothing_is_left_over(
    address: str, archive: Path, tmp_path: Path
) -> None:
    (archive.parent / "other.tar.gz").write_bytes(archive.read_bytes()[:200])
    urls = tuple(f"{address}/{name}" for name in ("lost.tar.gz", "other.tar.gz", "cifar.tar.gz"))
    assert "cifar.tar.gz" in cifar10.fetch(context(tmp_path, urls=urls))
    assert fetched(tmp_path) == SMALL
    assert {path.name for path in (tmp_path / ".cifarflow/downloads").iterdir()} == {"lock", cifar10.ARCHIVE}


WRONG: dict[str, tuple[Callable[[bytes], Answer], str]] = {
    "length too short": (lambda body: full(body, length=len(body) // 2), "is not a whole tar.gz archive"),
    "length too long": (lambda body: full(body, length=len(body) + 9), "the connection ended after"),
    "drips": (lambda body: dripping(body), "which would take for ever"),
    "drips what is no archive": (lambda body: dripping(b"\x1f\x8b" + bytes(20_000)), "would take for ever"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_address_that_gives_too_little_is_named_and_the_next_one_taken(
    address: str, archive: Path, tmp_path: Path, kind: str
) -> None:
    content = archive.read_bytes()
    answer, reason = WRONG[kind]
    with serving(answer(content)) as (wrong, _):
        with pytest.raises(DownloadError) as caught:
            cifar10.fetch(context(tmp_path, urls=(wrong,), patience=BRISK))
        assert f"{wrong}: " in str(caught.value) and reason in str(caught.value)
        assert not (tmp_path / "data/raw/cifar-10-batches-py/test_batch").exists()
        good = f"{address}/cifar.tar.gz"
        assert good in cifar10.fetch(context(tmp_path, urls=(wrong, good), patience=BRISK))
    assert fetched(tmp_path) == SMALL
    downloads = tmp_path / ".cifarflow/downloads"
    assert (downloads / cifar10.ARCHIVE).read_bytes() == content
    assert {path.name for path in downloads.iterdir()} == {"lock", cifar10.ARCHIVE}, (
        "nothing of the wrong one"
    )


@pytest.mark.parametrize("is_other_file", [False, True])
def test_what_a_dripping_address_gave_is_gone_on_from_or_thrown_away(
    archive: Path, tmp_path: Path, is_other_file: bool
) -> None:
    """Under one mark there may be another file later: the published digests tell, and then all of it is asked anew."""
    content = archive.read_bytes()
    dripped = b"\x1f\x8b" + bytes(len(content)) if is_other_file else content
    with serving(dripping(dripped), rest(content), full(content)) as (url, server):
        where = context(tmp_path, urls=(url,), patience=BRISK)
        for _ in range(2 if is_other_file else 1):
            with pytest.raises(DownloadError):
                cifar10.fetch(where)
        cifar10.fetch(where)
    assert [asked.get("Range", "")[:6] for asked in server.requests[1:]] == ["bytes=", ""][
        : 1 + is_other_file
    ]
    assert fetched(tmp_path) == SMALL
    assert {path.name for path in (tmp_path / ".cifarflow/downloads").iterdir()} == {"lock", cifar10.ARCHIVE}


def test_complete_files_are_not_fetched_again(archive: Path, tmp_path: Path) -> None:
    cifar10.fetch(context(tmp_path, archive=str(archive)))
    archive.unlink()
    assert "already" in cifar10.fetch(context(tmp_path))


def test_all_addresses_and_reasons_and_the_way_out_are_named(address: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        cifar10.fetch(context(tmp_path, urls=(f"{address}/lost", "ftp://host/x", "http://127.0.0.1:9/y")))
    text = str(caught.value)
    for part in (
        f"{address}/lost: HTTP 404",
        "ftp://host/x: is no http",
        "127.0.0.1:9/y: ",
        "CIFAR10_ARCHIVE",
    ):
        assert part in text


def test_own_archive_that_is_something_else_is_named(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(DataIntegrityError, match=r"CIFAR10_ARCHIVE names .*missing"):
        cifar10.fetch(context(tmp_path, archive="missing.tar.gz"))
    archive.write_bytes(b"no archive")
    with pytest.raises(
        DataIntegrityError, match=r"not a whole tar.gz archive.* Mend or unset CIFAR10_ARCHIVE"
    ):
        cifar10.fetch(context(tmp_path, archive=str(archive)))


def test_second_download_waits_for_the_first(
    archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    downloads = tmp_path / ".cifarflow/downloads"
    downloads.mkdir(parents=True)
    with FileLock(downloads / "lock"):
        second = threading.Thread(target=cifar10.fetch, args=(context(tmp_path, archive=str(archive)),))
        second.start()
        second.join(timeout=0.1)
        assert second.is_alive()
        assert not (tmp_path / "data/raw").exists()
    second.join(timeout=5)
    assert fetched(tmp_path) == SMALL
    assert "waiting" in caplog.text


def test_two_downloads_at_once_are_one_download(
    archive: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    serve = http.server.SimpleHTTPRequestHandler.do_GET

    def slowly(self: http.server.SimpleHTTPRequestHandler) -> None:
        asked.append(self.path)
        time.sleep(0.2)
        serve(self)

    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "do_GET", slowly)
    told: list[str] = []
    where = context(tmp_path, urls=(f"{address}/cifar.tar.gz",))
    both = [threading.Thread(target=lambda: told.append(cifar10.fetch(where))) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(timeout=20)
    assert asked == ["/cifar.tar.gz"]
    assert [text.endswith("already, verified") for text in told] == [False, True]
    assert fetched(tmp_path) == SMALL


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A disk that is full at that size of a file: the write fails with an OSError, at the same places."""
    resource = pytest.importorskip("resource", reason="Windows has no file-size limit")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("limit", "arrived"), [(8_000, 8_000), (50_000, None)], ids=["while downloading", "while unpacking"]
)
def test_no_space_leaves_nothing_that_is_taken_for_whole_and_keeps_what_came(
    archive: Path, address: str, tmp_path: Path, limit: int, arrived: int | None
) -> None:
    url = f"{address}/cifar.tar.gz"
    with file_size_limit(limit), pytest.raises(OSError, match="File too large"):
        cifar10.fetch(context(tmp_path, urls=(url,)))
    folder = tmp_path / "data/raw/cifar-10-batches-py"
    assert not cifar10.is_complete(folder)
    left = {path.name: path.read_bytes() for path in folder.glob("*")}
    assert left.items() < SMALL.items(), "each file is whole or not there"
    part = PartFile.of(url, tmp_path / ".cifarflow/downloads").path.read_bytes()
    assert part == archive.read_bytes()[:arrived], "the next run goes on from here"
    cifar10.fetch(context(tmp_path, urls=(url,)))
    assert fetched(tmp_path) == SMALL


class Exploit:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def test_wrong_digest_is_never_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "data/raw/cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "batches.meta").write_bytes(pickle.dumps(Exploit(tmp_path / "proof"), protocol=2).ljust(158))
    with pytest.raises(DataIntegrityError, match=r"batches.meta is not as published: SHA-256 expected f9624"):
        cifar10.read(reading(tmp_path))
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickle_that_asks_for_a_function_is_refused(tmp_path: Path, protocol: int) -> None:
    with pytest.raises(DataIntegrityError, match=r"asks for (posix|nt)\.mkdir"):
        cifar10.load_pickle(pickle.dumps(Exploit(tmp_path / "proof"), protocol=protocol))
    with pytest.raises(DataIntegrityError, match=r"asks for builtins\.eval"):
        cifar10.load_pickle(b"cbuiltins\neval\n(S'1'\ntR.")
    assert not (tmp_path / "proof").exists()


def test_array_as_pickled_in_2009_is_read() -> None:
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    array = cifar10.load_pickle(
        b"\x80\x02" + empty + b"(K\x01(K\x02K\x02t" + dtype + b"\x89U\x04\x01\x02\x03\xfftb."
    )
    assert array.dtype == np.uint8
    assert array.tolist() == [[1, 2], [3, 255]]


def test_missing_files_name_the_stage_that_makes_them(tmp_path: Path) -> None:
    for name in SOURCES.names():
        with pytest.raises(MissingInputError, match="dvc repro download"):
            SOURCES.get(name).read(reading(tmp_path))


def test_shapes_of_one_seed_are_the_same_bytes(tmp_path: Path) -> None:
    other = SHAPES.model_copy(update={"seed": 1})
    for root, config in (("a", SHAPES), ("b", SHAPES), ("c", other)):
        shapes.fetch(context(tmp_path / root, shapes=config))
    for name in ("train.safetensors", "test.safetensors", "shapes.json"):
        a, b, c = ((tmp_path / root / "data/raw/shapes" / name).read_bytes() for root in "abc")
        assert a == b
        assert (a == c) == (name == "shapes.json")


def test_shapes_are_balanced_pictures_of_ten_classes(tmp_path: Path) -> None:
    shapes.fetch(context(tmp_path))
    raw = shapes.read(reading(tmp_path))
    assert raw.train_images.shape == (200, 32, 32, 3)
    assert raw.train_images.dtype == raw.test_images.dtype == np.uint8
    assert np.bincount(raw.train_labels).tolist() == [20] * len(raw.classes) == [20] * 10
    assert not (raw.train_images[:100] == raw.test_images).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize("name", list(shapes.FIGURES))
def test_figure_is_drawn_inside_its_circle_and_not_all_over_it(name: str) -> None:
    rows, columns = np.mgrid[-1.5:1.5:200j, -1.5:1.5:200j]
    inside = shapes.FIGURES[name](columns, rows) < 0
    assert not inside[np.hypot(rows, columns) > 1.25].any()
    assert 0.08 < inside.mean() < 0.4


def test_what_was_downloaded_once_is_not_downloaded_again(
    address: str, archive: Path, tmp_path: Path
) -> None:
    """DVC empties the raw folder and runs the stage again when own pictures come into data/images."""
    urls = (f"{address}/cifar.tar.gz",)
    cifar10.fetch(context(tmp_path, urls=urls))
    archive.unlink()  # the server has it no longer
    shutil.rmtree(tmp_path / "data/raw")
    assert "downloaded before" in cifar10.fetch(context(tmp_path, urls=urls))
    assert fetched(tmp_path) == SMALL


def test_a_kept_archive_that_is_broken_is_downloaded_anew(
    address: str, archive: Path, tmp_path: Path
) -> None:
    kept = tmp_path / ".cifarflow" / "downloads" / cifar10.ARCHIVE
    kept.parent.mkdir(parents=True)
    kept.write_bytes(archive.read_bytes()[:100])
    assert "127.0.0.1" in cifar10.fetch(context(tmp_path, urls=(f"{address}/cifar.tar.gz",)))
    assert fetched(tmp_path) == SMALL
    assert kept.read_bytes() == archive.read_bytes()
