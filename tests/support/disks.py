"""Real disks of a few kilobytes, and read-only ones, in a mount namespace that ends with the process that it is for."""

import functools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

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
