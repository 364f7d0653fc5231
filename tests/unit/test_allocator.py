"""What a process frees, it gets again without asking the system; seen in the page faults of real processes."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping

import pytest

from cifarflow import allocator

NEEDS_GLIBC = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="glibc is what is told to keep memory"
)
PAGES_A_MIB = (1 << 20) // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
PROGRAM = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages (PR_SET_THP_DISABLE): a fault is to be one small page
from cifarflow.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
else:
    print(False)
size = int(sys.argv[2]) << 20
bytearray(size)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    bytearray(size)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str, *, mib: int = 48, environment: Mapping[str, str] | None = None) -> tuple[bool, float]:
    """Whether memory is kept, and what part of its pages is new when a block is made and freed, five times."""
    plain = {name: value for name, value in os.environ.items() if name not in allocator.SETTINGS_OF_THE_USER}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode, str(mib)],
        env={**plain, **(environment or {})},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count) / (5 * mib * PAGES_A_MIB)


@NEEDS_GLIBC
def test_memory_that_was_freed_is_used_again() -> None:
    kept, new = faults("keep")
    assert kept and new < 0.1
    kept, new = faults("as it is")
    assert not kept and new > 0.8, "without it, every page is new each time"


@NEEDS_GLIBC
def test_blocks_that_no_step_needs_go_back_to_the_system() -> None:
    kept, new = faults("keep", mib=96)
    assert kept and new > 0.8


@NEEDS_GLIBC
@pytest.mark.parametrize("name", allocator.SETTINGS_OF_THE_USER)
def test_what_the_user_has_set_stays(name: str) -> None:
    value = "glibc.malloc.check=0" if name == "GLIBC_TUNABLES" else "131072"
    kept, new = faults("keep", environment={name: value})
    assert not kept and new > 0.8


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)  # would fail if it were called
    assert not allocator.keep_freed_memory()
