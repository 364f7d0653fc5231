"""Everything that a user can cause, as exceptions, and the one place that turns them into a line and an exit code.

CifarflowError                exit code 2
+-- ConfigError               params.yaml: unknown key, wrong type, out of range (all faults of the file at once)
+-- UnknownNameError          a model, recipe or source that does not exist
+-- DataIntegrityError        an archive, a batch file or a picture is not what it claims to be
+-- DownloadError             no address gave the file
+-- MissingInputError         a file that an earlier stage makes is not there
+-- InputsChangedError        params, code or data were edited while a stage ran
+-- CheckpointError           a checkpoint or a model file does not fit or is broken
+-- TrainingError             training cannot go on (non-finite loss)
+-- ExportParityError         PyTorch and the exported model disagree
+-- TrackingError             the tracking store cannot be used
+-- DvcError                  DVC's own files cannot be used
"""

import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn
from urllib.parse import urlsplit

INTERRUPTED = 130  # the exit code that a shell gives to Ctrl-C


class CifarflowError(Exception):
    """A fault that the user can mend; its text says what is wrong, where, what is allowed and what to do next."""

    exit_code = 2


class ConfigError(CifarflowError):
    """params.yaml cannot be used."""


class UnknownNameError(CifarflowError):
    """A name that nothing is registered under; offers the nearest known one."""

    def __init__(self, kind: str, name: str, *, known: Sequence[str], where: str = "") -> None:
        place = f" ({where})" if where else ""
        super().__init__(
            f"unknown {kind} {name!r}{place}. {did_you_mean(name, known)}Known: {', '.join(sorted(known))}."
        )


class DataIntegrityError(CifarflowError):
    """Bytes that are not what they should be; nothing of them was used."""


class DownloadError(CifarflowError):
    """Every address failed; the text lists each with its reason."""


class MissingInputError(CifarflowError):
    """An input of a stage is missing."""

    def __init__(self, path: os.PathLike[str] | str, *, made_by: str) -> None:
        super().__init__(
            f"{os.fspath(path)} is missing. The stage `{made_by}` makes it: run `uv run dvc repro {made_by}`."
        )


class InputsChangedError(CifarflowError):
    """What DVC will record of a stage's inputs is not what the stage has seen."""


class CheckpointError(CifarflowError):
    """A checkpoint or model file is broken or belongs to something else."""


class TrainingError(CifarflowError):
    """Training cannot go on."""


class ExportParityError(CifarflowError):
    """The exported model does not compute what PyTorch computes."""


class TrackingError(CifarflowError):
    """The tracking store cannot be used."""


class DvcError(CifarflowError):
    """DVC's own files cannot be used."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`"Did you mean 'x'? "` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}? " if close else ""


def printable(text: str) -> str:
    """`text` as one line that no terminal obeys: line breaks, colours and invisible characters are spelt out."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def without_passwords(text: str) -> str:
    """An address, or a library's message with one in it, as it may be shown; a password may hold @ and /."""
    text = re.sub(r"(?<=://)\S*@", "", text)
    return re.sub(
        r"(?i)(?<=[?&;])([^=&;\s]*(?:passw|pwd|token|secret|key)[^=&;\s]*)=[^&;\s]*", r"\1=...", text
    )


def without_secrets(url: str) -> str:
    """The address as it may be shown: no user, password or query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{url.partition(':')[0]}://..."
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def run(main: Callable[[], int | None]) -> int:
    """Run `main`, turn what a user can cause into one line on stderr, and return the exit code.

    Bugs of our own keep their traceback: hiding it would only cost the reader time. SIGTERM counts as Ctrl-C, so that
    whoever tracks the stage hears of its end.
    """
    try:
        with _signals_as_ctrl_c():
            return main() or 0
    except CifarflowError as error:
        print("\n".join(map(printable, f"error: {error}".split("\n"))), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        print(_hint_of(interrupt), file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in _ENVIRONMENT_ERRNOS:
            raise
        print(printable(f"error: {_describe(error)}"), file=sys.stderr)
        return CifarflowError.exit_code


def leave_quietly_until_run() -> None:
    """For the seconds in which a program imports what it needs: a signal ends it with a line, not with a traceback.

    Nothing is open yet, so nothing is closed: an exception could be swallowed by whatever is being imported.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)


def _leave(number: int, frame: object) -> NoReturn:
    os.write(sys.stderr.fileno(), b"interrupted; run the same command again\n")
    os._exit(INTERRUPTED)


def _hint_of(interrupt: BaseException) -> str:
    """What the first of several interrupts says: a second Ctrl-C, while things are closed, says nothing."""
    said = []
    link: BaseException | None = interrupt
    while link is not None:
        if isinstance(link, KeyboardInterrupt):
            said.append(str(link))
        link = link.__context__
    return next(filter(None, reversed(said)), "interrupted")


@contextlib.contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGTERM: _terminate, signal.SIGINT: signal.default_int_handler}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt("stopped by SIGTERM; run the same command again")


_ENVIRONMENT_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EIO,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}


def _describe(error: OSError) -> str:
    where = f" {error.filename}" if error.filename else " an output file"
    return (
        f"cannot write or read{where}: {error.strerror}. "
        "Free some space, or mend the path or its permissions, then run the same command again; "
        "`uv run dvc checkout` brings the last good data and models back, "
        "`git checkout metrics plots` the last committed numbers and plots."
    )
