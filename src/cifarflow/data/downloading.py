"""One file over HTTP: goes on where it stopped, gives up on a stall, never falls from https to http."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
import urllib3.exceptions

from cifarflow import files
from cifarflow.data.progress import Progress
from cifarflow.errors import without_secrets

CHUNK_BYTES = 1 << 16
MAX_BYTES = 512 << 20
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long to wait for an address; `attempts` counts only as long as each brings new bytes.

    A server that sends a byte now and then is given up when `slow_seconds` brought less than `least_bytes_per_second`.
    """

    connect_seconds: float = 10
    stall_seconds: float = 30
    slow_seconds: float = 60
    least_bytes_per_second: float = 1000
    attempts: int = 20


class AddressError(Exception):
    """An address does not give the file; the text is the reason."""


class _CutError(Exception):
    """The connection ended early; what came is kept, and the next attempt goes on from there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartFile:
    """A download under way, and beside it the mark (ETag or date) of the version that it is a part of."""

    path: Path
    mark: Path

    @classmethod
    def of(cls, url: str, folder: Path) -> "PartFile":
        key = hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()[:16]
        return cls(path=folder / f"{key}.part", mark=folder / f"{key}.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self) -> str:
        """Empty when the server named none, or the mark was lost: then nothing can be resumed."""
        try:
            return str(json.loads(self.mark.read_text(encoding="utf-8"))["version"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def begin(self, *, url: str, version: str) -> None:
        self.discard()
        files.write_json(self.mark, {"url": url, "version": version})
        self.path.touch()

    def keep_as(self, path: Path) -> None:
        """The whole file under its own name, for later."""
        self.path.replace(path)
        self.discard()

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.mark.unlink(missing_ok=True)


def is_url(address: str) -> bool:
    return address.partition(":")[0].lower() in ("http", "https")


def download(url: str, folder: Path, *, progress: Progress, patience: Patience) -> PartFile:
    """The whole gzip file behind `url`, as a PartFile in `folder`, which the caller keeps or discards.

    A part that an earlier run left is continued (Range, If-Range); if the file changed, or the server cannot
    resume, it starts over. Raises AddressError with the reason when the address does not give the file.
    """
    part = PartFile.of(url, folder)
    with _Session() as session:
        for _ in range(patience.attempts):
            before = part.size()
            try:
                if _attempt(session, url, part=part, progress=progress, patience=patience):
                    return part
            except _CutError as cut:
                if part.size() <= before:
                    raise AddressError(str(cut)) from None
            except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
                connecting = isinstance(error, requests.ConnectTimeout)
                waited = patience.connect_seconds if connecting else patience.stall_seconds
                what = "no connection" if connecting else "no bytes"
                raise AddressError(f"{what} for {waited:g} s") from None
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                raise AddressError(_innermost(error)) from None
            except ValueError as error:  # a redirect to what is no address, a length of thousands of digits
                raise AddressError(f"answered nonsense: {error}") from None
    raise AddressError(f"the connection was cut {patience.attempts} times")


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target and resp.url.startswith("https:") and not urljoin(resp.url, target).startswith("https:"):
            raise AddressError(f"redirects from https to {without_secrets(target)}, which is not protected")
        return target


def _attempt(session: _Session, url: str, *, part: PartFile, progress: Progress, patience: Patience) -> bool:
    """Ask for what is missing and append it: True when the file is whole, False when it must start over."""
    headers = {"Accept-Encoding": "identity"}
    size, version = part.size(), part.version()
    if size and version:
        headers |= {"Range": f"bytes={size}-", "If-Range": version}
    timeout = (patience.connect_seconds, patience.stall_seconds)
    with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
        if response.status_code == 416 and size and _range_total(response) == size:
            return True
        if size and (response.status_code == 416 or _is_foreign_part(response, size, version)):
            part.discard()
            return False
        if response.status_code not in (200, 206):
            raise AddressError(f"HTTP {response.status_code} {response.reason}")
        if response.status_code == 200:
            part.begin(url=without_secrets(url), version=_version(response))
        _append(response, part, progress=progress, patience=patience)
    return True


def _append(response: requests.Response, part: PartFile, *, progress: Progress, patience: Patience) -> None:
    """Raises _CutError when less came than was promised; what came is in the part."""
    total = _range_total(response) if response.status_code == 206 else _length(response)
    if total is not None and total > MAX_BYTES:
        raise AddressError(f"is {total:,} bytes, more than the {MAX_BYTES:,} that are accepted")
    size = before = part.size()
    started = time.monotonic()
    label = Path(urlsplit(response.url).path).name or "download"
    whole = True
    try:
        with (
            files.naming(part.path),
            part.path.open("ab") as stream,
            progress(label, total=total, done=size) as advance,
        ):
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
                if not size:
                    _check_gzip(chunk, response)
                size += len(chunk)
                if size > MAX_BYTES:
                    raise AddressError(f"sent more than the {MAX_BYTES:,} bytes that are accepted")
                stream.write(chunk)
                advance(len(chunk))
                seconds = time.monotonic() - started
                if seconds > patience.slow_seconds:
                    if size - before < seconds * patience.least_bytes_per_second:
                        raise AddressError(
                            f"sent {size - before:,} bytes in {seconds:.0f} s, which would take for ever"
                        )
                    started, before = time.monotonic(), size
    except urllib3.exceptions.ProtocolError:
        whole = False
    if not whole or size == 0 or (total is not None and size != total):
        promised = f" of {total:,}" if total is not None else ""
        raise _CutError(f"the connection ended after {size:,}{promised} bytes")


def _check_gzip(beginning: bytes, response: requests.Response) -> None:
    """A page that says sorry often comes with status 200, so the bytes decide."""
    if beginning[:2] != GZIP_MAGIC[: len(beginning)]:
        kind = response.headers.get("Content-Type", "of no named type")
        raise AddressError(f"answered with something that is not a gzip archive ({kind})")


def _version(response: requests.Response) -> str:
    """What names this version of the file; a weak ETag does not promise equal bytes."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _is_foreign_part(response: requests.Response, size: int, version: str) -> bool:
    """Whether a partial answer begins elsewhere than our part ends, or is of another version."""
    starts_here = response.headers.get("Content-Range", "").startswith(f"bytes {size}-")
    return response.status_code == 206 and not (starts_here and _version(response) in ("", version))


def _range_total(response: requests.Response) -> int | None:
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None


def _length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _innermost(error: Exception) -> str:
    """`[Errno 111] Connection refused` out of the three lines that requests wraps around it."""
    cause = str(error).rpartition("Caused by ")[2].rpartition("connection: ")[2]
    return cause.rstrip("\"')") or type(error).__name__
