"""The downloader against servers that really misbehave, on loopback."""

import gzip
import http.server
import random
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cifarflow.data.downloading import AddressError, PartFile, Patience, download, without_secrets
from cifarflow.data.progress import plain_lines

BODY = gzip.compress(random.Random(0).randbytes(300_000), mtime=0)
CHANGED = gzip.compress(random.Random(1).randbytes(300_000), mtime=0)
QUICK = Patience(connect_seconds=1, stall_seconds=0.3, attempts=5)
BRISK = Patience(connect_seconds=1, stall_seconds=5, slow_seconds=0.3, least_bytes_per_second=100_000)

Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the n-th request with the n-th answer of its server; the last one again and again."""

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.requests.append(dict(self.headers))
        server.answers[min(len(server.requests), len(server.answers)) - 1](self)

    def start(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *answers: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.requests: list[dict[str, str]] = []

    def handle_error(self, request: object, client_address: object) -> None: ...


@contextmanager
def serving(*answers: Answer, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, Server]]:
    server = Server(*answers)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        scheme = "http" if tls is None else "https"
        yield f"{scheme}://127.0.0.1:{server.server_port}/cifar.tar.gz", server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def full(
    body: bytes = BODY, *, sent: int | None = None, etag: str = '"one"', length: int | None = None
) -> Answer:
    """Status 200; the connection ends after `sent` bytes."""

    def answer(handler: Handler) -> None:
        marks = {"ETag": etag} if etag else {}
        handler.start(200, Content_Length=len(body) if length is None else length, **marks)
        handler.wfile.write(body[:sent])

    return answer


def rest(body: bytes = BODY, *, etag: str = '"one"') -> Answer:
    """Status 206 as a good server gives it, 200 when If-Range names another version."""

    def answer(handler: Handler) -> None:
        if handler.headers.get("If-Range") != etag:
            full(body, etag=etag)(handler)
            return
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            handler.start(416, Content_Range=f"bytes */{len(body)}", Content_Length=0)
            return
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.start(206, Content_Range=span, Content_Length=len(body) - start, ETag=etag)
        handler.wfile.write(body[start:])

    return answer


def status(code: int, **headers: object) -> Answer:
    return lambda handler: handler.start(code, Content_Length=0, **headers)


def stall(handler: Handler) -> None:
    handler.start(200, Content_Length=len(BODY), ETag='"one"')
    handler.wfile.write(BODY[:100_000])
    handler.wfile.flush()
    time.sleep(1)


def dripping(body: bytes = BODY, *, at_once: int = 10, each: int = 500, seconds: float = 0.02) -> Answer:
    """`at_once` bytes of what is asked for, and then `each` every so many seconds."""

    def answer(handler: Handler) -> None:
        first = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        span = {"Content_Range": f"bytes {first}-{len(body) - 1}/{len(body)}"} if first else {}
        handler.start(206 if first else 200, Content_Length=len(body) - first, ETag='"one"', **span)
        handler.wfile.write(body[first : first + at_once])
        for start in range(first + at_once, len(body), each):
            time.sleep(seconds)
            handler.wfile.write(body[start : start + each])

    return answer


def page(handler: Handler) -> None:
    handler.start(200, Content_Type="text/html", Content_Length=26)
    handler.wfile.write(b"<html>Please log in</html>")


def get(url: str, folder: Path, *, patience: Patience = QUICK) -> bytes:
    return download(url, folder, progress=plain_lines, patience=patience).path.read_bytes()


def test_gives_the_bytes_that_the_server_has(tmp_path: Path) -> None:
    with serving(full()) as (url, server):
        assert get(url, tmp_path) == BODY
    assert "Range" not in server.requests[0]
    assert server.requests[0]["Accept-Encoding"] == "identity"


def test_cut_connection_goes_on_with_a_range_and_gives_equal_bytes(tmp_path: Path) -> None:
    with serving(full(sent=123_456), rest()) as (url, server):
        assert get(url, tmp_path) == BODY
    assert server.requests[1]["Range"] == "bytes=123456-"
    assert server.requests[1]["If-Range"] == '"one"'


def test_part_of_an_earlier_run_is_continued(tmp_path: Path) -> None:
    with serving(full(sent=1000), status(503), rest()) as (url, server):
        with pytest.raises(AddressError, match="HTTP 503"):
            get(url, tmp_path)
        assert get(url, tmp_path) == BODY
    assert server.requests[2]["Range"] == "bytes=1000-"


def test_whole_part_of_a_killed_run_is_not_sent_again(tmp_path: Path) -> None:
    with serving(full(), rest()) as (url, server):
        get(url, tmp_path)
        assert get(url, tmp_path) == BODY
    assert server.requests[1]["Range"] == f"bytes={len(BODY)}-"


def test_changed_file_starts_over(tmp_path: Path) -> None:
    with serving(full(sent=1000), rest(CHANGED, etag='"two"')) as (url, _):
        assert get(url, tmp_path) == CHANGED


@pytest.mark.parametrize("span", ["bytes 1000-{last}/{length}", "bytes 0-{last}/{length}"])
def test_partial_answer_of_another_version_or_place_starts_over(tmp_path: Path, span: str) -> None:
    """A server that heeds Range and not If-Range."""

    def careless(handler: Handler) -> None:
        content_range = span.format(last=len(CHANGED) - 1, length=len(CHANGED))
        handler.start(206, Content_Range=content_range, Content_Length=len(CHANGED) - 1000, ETag='"two"')
        handler.wfile.write(CHANGED[1000:])

    with serving(full(sent=1000), careless, full(CHANGED, etag='"two"')) as (url, server):
        assert get(url, tmp_path) == CHANGED
    assert "Range" not in server.requests[2]


def test_server_without_range_starts_over(tmp_path: Path) -> None:
    with serving(full(sent=1000), full()) as (url, _):
        assert get(url, tmp_path) == BODY


def test_nothing_is_resumed_when_the_version_is_unknown(tmp_path: Path) -> None:
    with serving(full(sent=1000, etag=""), full(etag="")) as (url, server):
        assert get(url, tmp_path) == BODY
    assert "Range" not in server.requests[1]


def test_weak_etag_is_not_trusted(tmp_path: Path) -> None:
    with serving(full(sent=1000, etag='W/"one"'), full()) as (url, server):
        assert get(url, tmp_path) == BODY
    assert "Range" not in server.requests[1]


def test_chunked_body_that_ends_early_is_noticed(tmp_path: Path) -> None:
    def chunked(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.start(200, Transfer_Encoding="chunked", ETag='"one"')
        handler.wfile.write(b"1000\r\n" + BODY[:0x1000] + b"\r\n")
        handler.close_connection = True

    with serving(chunked, rest()) as (url, server):
        assert get(url, tmp_path) == BODY
    assert server.requests[1]["Range"] == "bytes=4096-"


def test_impossible_range_starts_over_and_does_not_loop(tmp_path: Path) -> None:
    with (
        serving(full(sent=1000), status(416)) as (url, server),
        pytest.raises(AddressError, match="HTTP 416"),
    ):
        get(url, tmp_path)
    assert len(server.requests) == 3


def test_promised_bytes_that_never_come_are_an_error(tmp_path: Path) -> None:
    promised = len(BODY) + 10
    text = f"ended after {len(BODY):,} of {promised:,} bytes"
    with serving(full(length=promised)) as (url, _), pytest.raises(AddressError, match=text):
        get(url, tmp_path)


def test_a_partial_answer_of_too_short_a_length_is_gone_on_from(tmp_path: Path) -> None:
    def too_short(handler: Handler) -> None:
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        span = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        handler.start(206, Content_Range=span, Content_Length=5000, ETag='"one"')
        handler.wfile.write(BODY[start:])

    with serving(full(sent=1000), too_short, rest()) as (url, server):
        assert get(url, tmp_path) == BODY
    assert [asked.get("Range") for asked in server.requests] == [None, "bytes=1000-", "bytes=6000-"]


def test_endless_cuts_end(tmp_path: Path) -> None:
    with serving(full(sent=0)) as (url, server), pytest.raises(AddressError, match="ended after 0 of"):
        get(url, tmp_path)
    assert len(server.requests) == 1


def test_stall_ends_soon_and_keeps_what_came(tmp_path: Path) -> None:
    with serving(stall) as (url, _):
        started = time.monotonic()
        with pytest.raises(AddressError, match=r"no bytes for 0\.3 s"):
            get(url, tmp_path)
        assert time.monotonic() - started < 0.9
        assert PartFile.of(url, tmp_path).size() > 0


def test_silent_server_ends_soon(tmp_path: Path) -> None:
    with (
        serving(lambda _: time.sleep(0.5)) as (url, _),
        pytest.raises(AddressError, match=r"no bytes for 0\.3 s"),
    ):
        get(url, tmp_path)


def test_a_server_that_drips_is_given_up_and_what_came_is_kept(tmp_path: Path) -> None:
    """It never stalls, so no time-out ends it."""
    with serving(dripping(), rest()) as (url, server):
        started = time.monotonic()
        with pytest.raises(AddressError, match=r"^sent [\d,]+ bytes in 0 s, which would take for ever$"):
            get(url, tmp_path, patience=BRISK)
        assert 0.3 < time.monotonic() - started < 2
        assert len(server.requests) == 1, "another attempt would be as slow"
        size = PartFile.of(url, tmp_path).size()
        assert 0 < size < 60_000
        assert get(url, tmp_path, patience=BRISK) == BODY
    assert server.requests[1]["Range"] == f"bytes={size}-"


def test_what_came_before_does_not_make_a_dripping_server_quick(tmp_path: Path) -> None:
    with serving(full(sent=200_000), dripping()) as (url, server):
        started = time.monotonic()
        with pytest.raises(AddressError, match="would take for ever"):
            get(url, tmp_path, patience=BRISK)
        assert time.monotonic() - started < 1.5
    assert len(server.requests) == 2


def test_a_server_that_is_slow_but_not_too_slow_is_waited_for(tmp_path: Path) -> None:
    with serving(dripping(each=20_000, seconds=0.05)) as (url, server):
        started = time.monotonic()
        assert get(url, tmp_path, patience=BRISK) == BODY
        assert time.monotonic() - started > 2 * BRISK.slow_seconds
    assert len(server.requests) == 1


def test_a_server_that_begins_to_drip_after_a_quick_start_is_given_up_as_soon(tmp_path: Path) -> None:
    with serving(dripping(at_once=200_000)) as (url, _):
        started = time.monotonic()
        with pytest.raises(AddressError, match="would take for ever"):
            get(url, tmp_path, patience=BRISK)
        assert time.monotonic() - started < 4 * BRISK.slow_seconds


def test_page_instead_of_an_archive_is_named(tmp_path: Path) -> None:
    with serving(page) as (url, _), pytest.raises(AddressError, match=r"not a gzip archive \(text/html\)"):
        get(url, tmp_path)


@pytest.mark.parametrize("code", [403, 404, 500])
def test_status_is_named(tmp_path: Path, code: int) -> None:
    with serving(status(code)) as (url, _), pytest.raises(AddressError, match=f"HTTP {code}"):
        get(url, tmp_path)


def test_unreachable_address_is_named(tmp_path: Path) -> None:
    with serving(full()) as (url, _):
        pass
    with pytest.raises(AddressError, match="refused"):
        get(url, tmp_path)


def test_absurd_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with serving(full(length=1 << 40)) as (url, _), pytest.raises(AddressError, match="more than"):
        get(url, tmp_path)


def test_redirect_within_http_is_followed(tmp_path: Path) -> None:
    with serving(status(302, Location="/elsewhere.tar.gz"), full()) as (url, _):
        assert get(url, tmp_path) == BODY


def test_redirect_from_https_to_http_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    try:
        subprocess.run(
            [*make, *name, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("needs the openssl command to make a certificate")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with (
        serving(full()) as (plain, server),
        serving(status(302, Location=plain), full(), tls=tls) as (url, _),
    ):
        with pytest.raises(AddressError, match="redirects from https to http"):
            get(url, tmp_path)
        assert server.requests == []
        assert get(url, tmp_path) == BODY


def test_secrets_of_an_address_are_not_shown() -> None:
    assert without_secrets("https://me:pw@host:8/a.gz?token=1") == "https://host:8/a.gz"


NONSENSE = [
    b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://x:99999999/\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n" + BODY[:50],
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + BODY[:50],
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"HTTP/1.1 999999 OK\r\n\r\n",
    b"hello\r\n\r\n",
]


@pytest.mark.parametrize("answer", NONSENSE, ids=lambda answer: repr(answer[:60]))
def test_a_nonsensical_answer_is_a_reason(tmp_path: Path, answer: bytes) -> None:
    def raw(handler: Handler) -> None:
        handler.wfile.write(answer)
        handler.close_connection = True

    with serving(raw) as (url, _), pytest.raises(AddressError):
        get(url, tmp_path)


@pytest.mark.parametrize(
    "url",
    ["http://[", "http://\ud800/", "http://a\0b/", "http://x:99999999/", "http://\u2100.com/", "http://"],
)
def test_an_address_that_cannot_be_is_a_reason(tmp_path: Path, url: str) -> None:
    without_secrets(url)
    with pytest.raises(AddressError):
        get(url, tmp_path)
