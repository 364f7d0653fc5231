"""The real CIFAR-10 through the real stages, over a connection that breaks in the middle."""

import http.server
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cifarflow import files
from cifarflow.data.packed import read_dataset, read_split
from cifarflow.data.sources import cifar10
from cifarflow.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]
CANDIDATES = [
    REPOSITORY / os.environ.get("CIFAR10_ARCHIVE", "-"),
    REPOSITORY.parent / "shared" / "data" / "cifar-10-python.tar.gz",
]
ARCHIVE = next((path for path in CANDIDATES if path.is_file()), None)

pytestmark = pytest.mark.skipif(ARCHIVE is None, reason="needs CIFAR10_ARCHIVE or ../shared/data/*.tar.gz")


class CutOnce(http.server.BaseHTTPRequestHandler):
    """Sends half of the archive to the first request, and honours Range afterwards."""

    ranges: list[str]

    def do_GET(self) -> None:
        assert ARCHIVE is not None
        wanted = self.headers.get("Range", "")
        self.ranges.append(wanted)
        start, size = int(re.sub(r"\D", "", wanted) or 0), ARCHIVE.stat().st_size
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", '"archive"')
        self.send_header("Content-Length", str(size - start))
        self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        with ARCHIVE.open("rb") as stream:
            stream.seek(start)
            left = size - start if wanted else size // 2
            while left > 0 and (chunk := stream.read(min(left, 1 << 20))):
                self.wfile.write(chunk)
                left -= len(chunk)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    handler = type("Handler", (CutOnce,), {"ranges": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def run_stage(name: str, root: Path) -> str:
    """The stage as DVC starts it, but without an archive at hand; it must not even import torch."""
    environ = {key: value for key, value in os.environ.items() if key not in ("CIFAR10_ARCHIVE", "DVC_ROOT")}
    environ["PYTHONPATH"] = os.pathsep.join(str(REPOSITORY / name) for name in ("src", "stages"))
    script = f"""
import runpy, sys
sys.argv = ["{name}.py"]
try:
    runpy.run_path({str(REPOSITORY / "stages" / f"{name}.py")!r}, run_name="__main__")
finally:
    assert not {{"torch", "torchvision", "mlflow"}} & set(sys.modules), "a heavy package was imported"
"""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=root, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_download_and_prepare_of_the_real_archive(
    server: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
    params = (REPOSITORY / "recipes" / "cifar94.yaml").read_text(encoding="utf-8")
    params = re.sub(r"https://\S+cifar-10-python\.tar\.gz", url, params)
    params = re.sub(r"source: \w+", "source: cifar10", params, count=1)
    params = re.sub(r"validation_fraction: [\d.]+", "validation_fraction: 0.02", params)
    (tmp_path / "params.yaml").write_text(params, encoding="utf-8")

    assert "8 files verified" in run_stage("download", tmp_path)
    ranges = server.RequestHandlerClass.ranges  # type: ignore[attr-defined]
    assert ranges[0] == ""
    assert re.fullmatch(r"bytes=[1-9]\d+-", ranges[1])
    raw = tmp_path / "data" / "raw" / "cifar-10-batches-py"
    digests = {path.name: files.sha256_of_file(path) for path in raw.iterdir()}
    assert digests == {name: published.sha256 for name, published in cifar10.PUBLISHED.items()}

    started = time.monotonic()
    assert "49,000 train, 1,000 validation, 10,000 test pictures in 10 classes" in run_stage(
        "prepare", tmp_path
    )
    assert time.monotonic() - started < 60

    workspace = Workspace.at(tmp_path, {})
    info = read_dataset(workspace.dataset)
    assert info.classes[:3] == ("airplane", "automobile", "bird")
    assert info.counts["validation"] == dict.fromkeys(info.classes, 100)
    # Over all 50,000 pictures the literature has 0.4914 0.4822 0.4465 and 0.2470 0.2435 0.2616.
    np.testing.assert_allclose(info.mean, (0.4914, 0.4822, 0.4465), atol=0.001)
    np.testing.assert_allclose(info.std, (0.2470, 0.2435, 0.2616), atol=0.001)
    test = read_split(workspace.split("test"))
    assert test.digest() == info.digests["test"]
    # The first test picture is the well-known cat; its first pixel, as the web page shows it.
    assert info.classes[test.labels[0]] == "cat"
    assert test.images[0, 0, 0].tolist() == [158, 112, 49]
