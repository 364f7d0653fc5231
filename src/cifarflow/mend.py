"""What a kill can leave of DVC's own files, and how they are made good: DVC 3.67.1 stops at each of these for ever.

All three come of a write that is not atomic. In `dvc/stage/cache.py` a folder is made and the stage's result then moved
into it; `dvc/rwlock.py` and `dvc/dvcfile.py` empty a file and then fill it.
"""

import json
from pathlib import Path

from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.lock import make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

from cifarflow.errors import DvcError


def mend(root: Path) -> list[str]:
    """Make good what a kill broke in the DVC repository at `root`; one sentence for each thing that was done.

    No output of a stage is touched. Raises DvcError when this is no repository, or another DVC command holds one of
    DVC's locks: what that one is about to write may look broken for a moment.
    """
    try:
        with Repo(str(root)) as repo, repo.lock:
            return [
                *_empty_results(Path(repo.stage_cache.cache_dir)),
                *_unreadable_lock_of_paths(repo),
                *_unreadable_record(Lockfile(repo, str(root / "dvc.lock"))),
            ]
    except DvcException as error:
        raise DvcError(f"DVC's files in {root} cannot be looked through: {error}") from None


def _empty_results(run_cache: Path) -> list[str]:
    empty = [folder for folder in run_cache.glob("*/*/") if not any(folder.iterdir())]
    for folder in empty:
        folder.rmdir()
    return [f"Removed an empty result from DVC's run cache ({folder.name[:8]})." for folder in empty]


def _unreadable_lock_of_paths(repo: Repo) -> list[str]:
    """Which process works on which path; a list that cannot be read names none, so an empty one is right.

    A DVC whose stage runs lets go of the repository, but not of this list's own lock while it writes it.
    """
    folder = Path(str(repo.tmp_dir))
    path, lock = folder / RWLOCK_FILE, str(folder / RWLOCK_LOCK)
    with make_lock(lock, tmp_dir=str(folder), hardlink_lock=repo.config["core"].get("hardlink_lock", False)):
        try:
            json.loads(path.read_bytes())
        except FileNotFoundError:
            return []
        except ValueError:
            path.unlink()
            return [f"Removed {path.name}, DVC's list of busy paths: it was cut off in the middle."]
    return []


def _unreadable_record(record: Lockfile) -> list[str]:
    """What was made from what. DVC's run cache knows it too, so the next repro restores it and runs nothing again."""
    try:
        record.load()
    except DvcException:
        path = Path(record.path)
        aside = path.replace(path.with_name(f"{path.name}.broken"))
        return [f"Moved {path.name}, cut off in the middle, to {aside.name}; the next repro writes it anew."]
    return []
