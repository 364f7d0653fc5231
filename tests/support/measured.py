"""`python measured.py PEAK SCRIPT ARGUMENTS`: run a script or module, and write the bytes that it held at most to PEAK.

The process asks itself: what a parent is told of a child counts the parent's own memory at the moment of the fork too.
"""

import resource
import runpy
import sys
from pathlib import Path


def peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    _, peak, script, *arguments = sys.argv
    sys.argv = [script, *arguments]
    try:
        if script.endswith(".py"):
            runpy.run_path(script, run_name="__main__")
        else:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
    finally:
        Path(peak).write_text(str(peak_bytes()))
