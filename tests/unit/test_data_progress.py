"""Progress never fills a log, and says how far it is."""

import io
import os
import subprocess
import sys

import pytest

from cifarflow.data.progress import plain_lines


def test_line_tells_part_size_and_speed() -> None:
    stream = io.StringIO()
    with plain_lines(
        "file", total=200_000_000, done=50_000_000, stream=stream, interval_seconds=0
    ) as advance:
        advance(50_000_000)
    assert stream.getvalue().startswith("file: 50 % of 200 MB, ")
    assert stream.getvalue().endswith("MB/s\n")


def test_unknown_size_is_counted_up() -> None:
    stream = io.StringIO()
    with plain_lines("file", total=None, stream=stream, interval_seconds=0) as advance:
        advance(3_000_000)
    assert stream.getvalue().startswith("file: 3 MB, ")


def test_lines_are_seconds_apart() -> None:
    stream = io.StringIO()
    with plain_lines("file", total=1000, stream=stream) as advance:
        for _ in range(1000):
            advance(1)
    assert stream.getvalue() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_terminal_gets_a_bar_on_stderr() -> None:
    import pty

    code = (
        "from cifarflow.data.progress import show_progress\n"
        "with show_progress('cifar.tar.gz', total=1000) as advance: advance(1000)"
    )
    ours, theirs = pty.openpty()
    environ = os.environ | {"TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=theirs, stdout=subprocess.PIPE, env=environ, check=True
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "cifar.tar.gz" in shown
    assert "\x1b[" in shown
    assert done.stdout == b""
