"""Tracking down, in every way a store can be: the stage goes on at full speed, says it once, and sync completes it."""

import contextlib
import http.server
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from cifarflow.tracking import sync
from cifarflow.tracking import tracker as tracker_module
from cifarflow.workspace import Workspace
from tests.support.disks import ALONE, needs_mounts
from tests.support.hostile import one_line
from tests.support.store import (
    Store,
    export,
    free_port,
    identity,
    make_workspace,
    mlflow_server,
    recorded,
    tracking,
    train,
    wait_for,
)

PROJECT = Path(__file__).resolve().parents[2]
NO_WAIT_SECONDS = 0.5  # a call that waited for the store would take a second, its time-out, or more
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> dict[str, Any]:
    """The run of a training whose store was never in trouble."""
    workspace = make_workspace(tmp_path_factory.mktemp("untroubled"), empty_store)
    train(workspace, identity())
    store = Store.of(workspace)
    return store.content(store.run())


def said(text: str) -> dict[str, int]:
    """How often the user heard of it; a traceback counts as well."""
    return {part: text.count(part) for part in ("cannot be reached", "uv run cifarflow sync", "Traceback")}


ONCE = {"cannot be reached": 1, "uv run cifarflow sync": 1, "Traceback": 0}
AT_THE_END = {**ONCE, "cannot be reached": 0}  # the stage was over before a request that hangs had failed


@contextlib.contextmanager
def nobody_listens() -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


@contextlib.contextmanager
def always_500() -> Iterator[str]:
    class Broken(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.send_error(500)

        do_GET = do_POST = _answer  # noqa: N815 - the names that http.server looks for

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@contextlib.contextmanager
def never_answers() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


@pytest.mark.parametrize(
    ("server", "told"),
    # The stage waits as long for a hanging request as the request does: either may end first.
    [(nobody_listens, [ONCE]), (always_500, [ONCE]), (never_answers, [ONCE, AT_THE_END])],
)
def test_a_server_of_no_use_slows_nothing(
    workspace: Workspace,
    expected: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    server: Callable[[], AbstractContextManager[str]],
    told: list[dict[str, int]],
) -> None:
    with server() as uri, caplog.at_level(logging.WARNING, "cifarflow"):
        began = time.perf_counter()
        assert train(workspace, identity(), config=tracking(uri)) < NO_WAIT_SECONDS
        assert time.perf_counter() - began < 5
    assert said(caplog.text + capfd.readouterr().err) in told
    assert sync(workspace, tracking()).failures == ()
    store = Store.of(workspace)
    assert store.content(store.run()) == expected
    assert store.reported(store.run()) == recorded(workspace, identity())


def test_a_server_that_dies_in_mid_run_has_the_whole_run_later(
    workspace: Workspace,
    tmp_path: Path,
    empty_store: Path,
    onnx_file: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    untroubled = make_workspace(tmp_path / "untroubled", empty_store)
    train(untroubled, identity())
    export(untroubled, identity(), onnx_file)
    port = free_port()
    config = tracking(f"http://127.0.0.1:{port}", timeout_seconds=20)
    store = Store(f"http://127.0.0.1:{port}")

    def epochs(server: "subprocess.Popen[bytes]") -> Iterator[int]:
        yield 0
        wait_for(
            lambda: store.experiment is not None and any("train_loss" in r.data.metrics for r in store.runs())
        )
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        yield from (1, 2)

    with (
        caplog.at_level(logging.WARNING, "cifarflow"),
        mlflow_server(port, tmp_path / "server", empty_store) as server,
    ):
        assert train(workspace, identity(), config=config, epochs=epochs(server)) < NO_WAIT_SECONDS
    assert said(caplog.text) == ONCE
    with mlflow_server(port, tmp_path / "server", empty_store):
        assert store.history(store.run(), "train_loss") == [(0, 1 / 3)], (
            "the rest came after the server's end"
        )
        assert store.run().info.status == "RUNNING"
        assert sync(workspace, config).failures == ()
        export(workspace, identity(), onnx_file, config=config)
        expected = Store.of(untroubled)
        assert store.content(store.run()) == expected.content(expected.run())
        assert store.reported(store.run()) == recorded(workspace, identity())
        assert store.experiment.artifact_location.startswith("mlflow-artifacts:")


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another process is in the middle of writing."""
    script = (
        "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('BEGIN EXCLUSIVE'); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        yield
        process.communicate()


def test_a_database_that_another_process_has_locked_slows_nothing(
    workspace: Workspace,
    expected: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracker_module, "LOCAL_PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(tracker_module, "SILENT_SECONDS", 0.5)
    with locked(workspace.mlflow_database), caplog.at_level(logging.WARNING, "cifarflow"):
        assert train(workspace, identity(), config=tracking()) < NO_WAIT_SECONDS
    assert said(caplog.text + capfd.readouterr().err) == AT_THE_END
    assert caplog.text.count("Waiting up to 0 s for MLflow at sqlite:///") == 1
    assert sync(workspace, tracking()).failures == ()
    store = Store.of(workspace)
    assert store.content(store.run()) == expected
    assert store.reported(store.run()) == recorded(workspace, identity())


@pytest.mark.parametrize(
    ("place", "reason"),
    [("folder", "is a folder"), ("none/mlflow.db", "lies in a folder that does not exist")],
)
def test_a_database_that_cannot_be_there_slows_nothing_and_is_told_with_its_reason(
    workspace: Workspace,
    expected: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    place: str,
    reason: str,
) -> None:
    """MLflow by itself tries for minutes to make a database there."""
    (workspace.home / "folder").mkdir()
    config, why = tracking(f"sqlite:///{place}"), f"{workspace.home / place}, where runs are to go, {reason}"
    with caplog.at_level(logging.WARNING, "cifarflow"):
        began = time.perf_counter()
        assert train(workspace, identity(), config=config) < NO_WAIT_SECONDS
        report = sync(workspace, config)
        assert time.perf_counter() - began < 2
    told, at_the_end = caplog.messages
    assert "cannot be reached" in told and f"(TrackingError: {why}. Mend " in told
    assert "uv run cifarflow sync" in at_the_end
    assert capfd.readouterr().err == ""
    (failure,) = report.failures
    assert f"TrackingError: {why}. Mend tracking.mlflow.uri in params.yaml" in one_line(failure)
    assert sync(workspace, tracking()).failures == ()
    store = Store.of(workspace)
    assert store.content(store.run()) == expected
    assert store.reported(store.run()) == recorded(workspace, identity())


@needs_mounts
def test_a_database_on_a_full_or_read_only_disk_slows_nothing(tmp_path: Path, empty_store: Path) -> None:
    done = subprocess.run(
        [*ALONE, sys.executable, "-m", "tests.support.store_on_disk", str(tmp_path), str(empty_store)],
        cwd=PROJECT,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert said(done.stderr) == {"cannot be reached": 2, "uv run cifarflow sync": 2, "Traceback": 0}, (
        "once each"
    )
    for fault in json.loads(done.stdout):
        assert fault["longest_seconds"] < NO_WAIT_SECONDS
        assert (fault["completed"], fault["failures"]) == (1, [])
        assert fault["found"] == fault["expected"]
