"""The real stage `download` with the real archive: killed by SIGKILL at any moment, beside another, on a full disk."""

import contextlib
import http.server
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cifarflow import files
from cifarflow.data.downloading import PartFile
from cifarflow.data.sources import cifar10
from cifarflow.workspace import Workspace
from tests.support.disks import ALONE, needs_mounts
from tests.support.small import PROJECT
from tests.support.store import wait_for

CANDIDATES = [
    PROJECT / os.environ.get("CIFAR10_ARCHIVE", "-"),
    PROJECT.parent / "shared" / "data" / "cifar-10-python.tar.gz",
]
ARCHIVE = next((path for path in CANDIDATES if path.is_file()), None)
SEED = int(os.environ.get("CIFARFLOW_KILLS_SEED", "0"))
BYTES_PER_SECOND = 60e6  # three seconds of transfer, so that a kill finds it under way
CHUNK_BYTES = 1 << 18

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ARCHIVE is None, reason="needs CIFAR10_ARCHIVE or ../shared/data/*.tar.gz"),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
]


class Slow(http.server.BaseHTTPRequestHandler):
    """Sends the archive, or what of it is asked for, at BYTES_PER_SECOND, and notes which byte each answer began at."""

    starts: list[int]

    def do_GET(self) -> None:
        assert ARCHIVE is not None
        wanted, size = self.headers.get("Range", ""), ARCHIVE.stat().st_size
        start = int(re.sub(r"\D", "", wanted) or 0)
        self.starts.append(start)
        if start >= size:
            self.answer(416, 0, f"bytes */{size}")
            return
        self.answer(206 if wanted else 200, size - start, f"bytes {start}-{size - 1}/{size}")
        with ARCHIVE.open("rb") as stream, contextlib.suppress(ConnectionError):  # the other end was killed
            stream.seek(start)
            while chunk := stream.read(CHUNK_BYTES):
                self.wfile.write(chunk)
                time.sleep(len(chunk) / BYTES_PER_SECOND)

    def answer(self, status: int, length: int, span: str) -> None:
        self.send_response(status)
        for name, value in {"ETag": '"archive"', "Content-Length": length, "Content-Range": span}.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


class Checkout:
    """A folder in which the stage downloads from a server; `starts` is where each of its answers began."""

    def __init__(self, root: Path, url: str, starts: list[int]) -> None:
        params = (PROJECT / "recipes" / "cifar94.yaml").read_text(encoding="utf-8")
        params = re.sub(r"https://\S+cifar-10-python\.tar\.gz", url, params)
        (root / "params.yaml").write_text(params, encoding="utf-8")
        self.root, self.starts = root, starts
        self.workspace = Workspace.at(root, {})
        self.folder = self.workspace.raw / cifar10.FOLDER
        self.part = PartFile.of(url, self.workspace.downloads)

    def start(self) -> "subprocess.Popen[str]":
        """The stage as DVC starts it, but without an archive at hand."""
        return subprocess.Popen(
            [sys.executable, str(PROJECT / "stages" / "download.py")],
            cwd=self.root,
            env=without_archive(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run_to_its_end(self) -> str:
        process = self.start()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return out

    def check_whole(self) -> None:
        """The published files, the archive for later, and nothing else."""
        assert [path.name for path in self.workspace.raw.iterdir()] == [cifar10.FOLDER]
        digests = {path.name: files.sha256_of_file(path) for path in self.folder.iterdir()}
        assert digests == {name: published.sha256 for name, published in cifar10.PUBLISHED.items()}
        kept = {path.name for path in self.workspace.downloads.iterdir()}
        assert kept == {"lock", cifar10.ARCHIVE}
        assert [*self.root.rglob("*.part"), *self.root.rglob(".*.part")] == []


def without_archive() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if name not in ("CIFAR10_ARCHIVE", "DVC_ROOT")}
    return {**kept, "PATH": path}


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    handler = type("Handler", (Slow,), {"starts": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    root = tmp_path / "checkout"
    root.mkdir()
    yield Checkout(root, f"http://127.0.0.1:{server.server_port}/{cifar10.ARCHIVE}", handler.starts)
    server.shutdown()
    server.server_close()
    thread.join()


def kill_when(process: "subprocess.Popen[str]", condition: Callable[[], bool], *, after: float = 0) -> None:
    """SIGKILL, `after` seconds after the condition held; fails when the process ended by itself before."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    time.sleep(after)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.communicate()


def test_killed_at_any_moment_of_a_transfer_or_of_unpacking_it_ends_with_the_published_files(
    checkout: Checkout,
) -> None:
    assert ARCHIVE is not None
    chance, whole = random.Random(SEED), ARCHIVE.stat().st_size
    arrived = sorted(chance.sample(range(1, whole - 20_000_000), 3))
    expected = [0]
    for least in arrived:
        kill_when(checkout.start(), lambda least=least: checkout.part.size() >= least)
        expected.append(checkout.part.size())
        assert not checkout.workspace.raw.exists(), "nothing is unpacked that is not whole"
    for number in chance.sample(range(1, len(cifar10.PUBLISHED) - 1), 2):
        shutil.rmtree(checkout.workspace.raw, ignore_errors=True)  # as DVC does
        process = checkout.start()
        kill_when(process, lambda number=number: unpacked(checkout) >= number, after=chance.uniform(0, 0.05))
        expected.append(whole)
        left = {path.name: files.sha256_of_file(path) for path in checkout.folder.glob("[!.]*")}
        published = {name: cifar10.PUBLISHED[name].sha256 for name in left}
        assert left == published, "each file is whole or not there"
    checkout.run_to_its_end()
    assert checkout.starts == expected, f"each run goes on where the one before was killed (seed {SEED})"
    checkout.check_whole()


def unpacked(checkout: Checkout) -> int:
    return len(list(checkout.folder.glob("*")))  # with the hidden one that is being written


def test_a_download_takes_over_from_one_that_is_killed_while_it_waits(checkout: Checkout) -> None:
    first = checkout.start()
    wait_for(lambda: checkout.part.size() > 0)
    second = checkout.start()
    assert second.stderr is not None
    assert second.stderr.readline() == "another download is running; waiting until it ends\n"
    assert second.poll() is None and len(checkout.starts) == 1
    kill_when(first, lambda: checkout.part.size() > 20_000_000)
    size = checkout.part.size()
    out, err = second.communicate(timeout=60)
    assert (second.returncode, "Traceback" in err) == (0, False), err
    assert "8 files verified" in out
    assert checkout.starts == [0, size]
    checkout.check_whole()


# On the first disk the archive finds no room, on the second it and the files do.
ON_A_SMALL_DISK = """\
mount -t tmpfs -o size=8m none "$1"
cp params.yaml "$1" && cd "$1"
code=0; python "$2" || code=$?
find . -type f
[ $code = 2 ] || exit 1
mount -o remount,size=420m .
python "$2"
sha256sum data/raw/*/*
find . -name "*.part"
"""


@needs_mounts
def test_a_full_disk_names_the_part_and_with_space_the_next_run_goes_on(
    checkout: Checkout, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        [*ALONE, "sh", "-c", ON_A_SMALL_DISK, "sh", str(disk), str(PROJECT / "stages" / "download.py")],
        cwd=checkout.root,
        env=without_archive(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    part = checkout.part.path.relative_to(checkout.root)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: cannot write or read {disk / part}: No space left on device. ")
    on_full, _, later = done.stdout.partition("download: ")
    assert sorted(on_full.split()) == sorted(
        f"./{name}" for name in ("params.yaml", part, part.with_suffix(".json"), part.with_name("lock"))
    )
    first, second = checkout.starts
    assert first == 0 and 7 << 20 < second <= 8 << 20, "all that had found room was kept"
    shown = {Path(path).name: digest for digest, path in re.findall(r"(\w{64})  (.+)", later)}
    assert shown == {name: published.sha256 for name, published in cifar10.PUBLISHED.items()}
    assert ".part" not in later
