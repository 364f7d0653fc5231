"""Real disks of a few kilobytes, and read-only ones, in a mount namespace that ends with the process that it is for."""

import functools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cifarflow.config import read_yaml

ALONE = ("unshare", "--user", "--map-root-user", "--mount")


def mount(kind: str, folder: Path, *options: str) -> None:
    """Mount something on `folder`; only to be called in a process that was started by ALONE."""
    subprocess.run(["mount", "-t", kind, *options, "none", str(folder)], check=True)


@functools.cache
def can_mount(probe: Sequence[str] = ("mount", "-t", "tmpfs", "none", "/tmp")) -> bool:
    """Whether the system lets a user have mounts of their own: some containers and hardened systems do not."""
    if shutil.which(ALONE[0]) is None:
        return False
    return subprocess.run([*ALONE, *probe], capture_output=True, check=False).returncode == 0


needs_mounts = pytest.mark.skipif(not can_mount(), reason="this system allows no mount namespace")


STAGE = """\
set -e
mount -t tmpfs -o size=64m none "$1"
cd "$1" && cp -r "$0"/src "$0"/stages "$0"/data "$0"/models "$0"/metrics "$0"/plots "$0"/*.yaml .
rm -rf $3
used=$(df -k --output=used . | tail -1)
case $4 in
  read-only) mount -o remount,ro . ;;
  *) mount -o remount,size=$((used + $4))k . ;;
esac
code=0; python "stages/$2.py" || code=$?
find . -name "*.part"
find $3 -type f 2>/dev/null || true
exit $code
"""


def stage_on_disk(root: Path, disk: Path, stage: str, *, space: str) -> list[str]:
    """The command that runs one stage on a copy of `root` on a disk of its own, and lists what it leaves of its outs.

    As DVC does, it removes the outs first. `space` is `read-only`, or the kilobytes that are free.
    """
    declared = read_yaml(root / "dvc.yaml")["stages"][stage]
    outs = [*declared.get("outs", []), *(name for metric in declared.get("metrics", []) for name in metric)]
    return [*ALONE, "sh", "-c", STAGE, str(root), str(disk), stage, " ".join(outs), space]
