"""Take the screenshots of docs/pictures anew: real servers on loopback, a real browser.

uv run python docs/make_pictures.py            # needs a Chromium on the PATH and runs in mlflow.db
"""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURES = Path(__file__).resolve().parent / "pictures"
PROJECT = PICTURES.parents[1]
# The curves of training; with the numbers of all stages it would be 65 charts.
CHARTS = "^(train|validation)_"


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no chromium on the PATH")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1400, "height": 800})
        with server("mlflow", "ui", "--port", "{port}") as address:
            take_mlflow(page, address)
        with server("tensorboard", "--logdir", "logs", "--port", "{port}") as address:
            take_tensorboard(page, address)
        chromium.close()


def take_mlflow(page: Page, address: str) -> None:
    page.goto(f"{address}/#/experiments/1/runs?compareRunsMode=CHART")
    page.wait_for_timeout(5000)
    page.mouse.click(1363, 35)  # closes the assistant, which has no name to find it by
    page.get_by_placeholder("Search metric charts").fill(CHARTS)
    page.wait_for_timeout(5000)
    page.screenshot(path=PICTURES / "mlflow.png")


def take_tensorboard(page: Page, address: str) -> None:
    page.goto(f"{address}/#timeseries")
    page.wait_for_timeout(6000)
    page.screenshot(path=PICTURES / "tensorboard.png")


@contextlib.contextmanager
def server(*command: str) -> Iterator[str]:
    """The address of a server that runs in the project's folder while the block does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([part.format(port=port) for part in command], cwd=PROJECT)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_answering(address)
        yield address
    finally:
        process.terminate()
        process.wait()


def wait_until_answering(address: str, *, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=2)
        except (urllib.error.URLError, OSError):
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
        else:
            return


if __name__ == "__main__":
    main()
