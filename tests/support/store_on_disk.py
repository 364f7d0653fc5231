"""`unshare ... python -m tests.support.store_on_disk HOME EMPTY_STORE`: a run's database on a disk that fails.

Prints, for a read-only disk and then a full one, how long a call took at most, and the run as it is after the disk was
mended and synced, beside one that was never in trouble.
"""

import contextlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cifarflow.tracking import sync
from tests.support.disks import mount
from tests.support.store import Store, identity, make_workspace, tracking, train


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while stream.write(b"x" * 4096):
            pass
    yield
    filler.unlink()


@contextlib.contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def main(home: Path, empty_store: Path) -> None:
    untroubled = make_workspace(home / "untroubled", empty_store)
    workspace = make_workspace(home / "troubled", empty_store)
    disk = workspace.home / "disk"
    disk.mkdir()
    mount("tmpfs", disk, "-o", "size=8m")
    shutil.copyfile(empty_store, disk / "mlflow.db")
    # A later process opens the file anew; in this one mlflow keeps what it opened, so sync gets another spelling.
    uri, later_uri = (f"sqlite:///{disk.as_posix()}/{name}" for name in ("mlflow.db", "./mlflow.db"))
    told = []
    for key, fault in (("a", read_only), ("b", full)):
        with fault(disk):
            longest = train(workspace, identity(train=key), config=tracking(uri))
        report = sync(workspace, tracking(later_uri))
        train(untroubled, identity(train=key))
        found, expected = Store(later_uri), Store.of(untroubled)
        told.append(
            {
                "longest_seconds": longest,
                "failures": report.failures,
                "completed": report.runs_completed,
                "found": found.content(found.runs()[-1]),
                "expected": expected.content(expected.runs()[-1]),
            }
        )
    print(json.dumps(told))


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
