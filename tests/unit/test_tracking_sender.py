"""The sender: a stage never waits for it, and nothing is lost when a store fails."""

import logging
import threading
import time

import pytest

from cifarflow.tracking import sender as sender_module
from cifarflow.tracking.sender import Sender


def test_everything_notified_before_close_is_sent() -> None:
    sent = []
    sender = Sender(lambda: sent.append(1), target="store")
    sender.notify()
    assert sender.close(timeout_seconds=5)
    assert sent


def test_notify_and_close_do_not_wait_for_a_store_that_hangs() -> None:
    release = threading.Event()
    sender = Sender(lambda: release.wait(30), target="store")
    began = time.monotonic()
    for _ in range(1000):
        sender.notify()
    assert time.monotonic() - began < 0.5
    assert not sender.close(timeout_seconds=0.1)
    assert time.monotonic() - began < 1.0
    release.set()


def test_a_store_that_fails_is_named_in_one_warning_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "FIRST_PAUSE_SECONDS", 0.01)
    refused = ConnectionError("refused by http://me:se@cret@127.0.0.1:9/api")
    failures = [refused] * 3
    recovered = threading.Event()

    def send() -> None:
        if failures:
            raise failures.pop()
        recovered.set()

    with caplog.at_level(logging.WARNING):
        sender = Sender(send, target="MLflow at http://x")
        sender.notify()
        assert recovered.wait(5)
        assert sender.close(timeout_seconds=5)
    assert [record.message for record in caplog.records] == [
        "MLflow at http://x cannot be reached, or refuses "
        "(ConnectionError: refused by http://127.0.0.1:9/api). "
        "The stage goes on; its journal keeps everything."
    ]


def test_close_after_a_failure_makes_one_more_attempt_and_then_gives_up() -> None:
    attempts = []

    def send() -> None:
        attempts.append(1)
        raise ConnectionError

    sender = Sender(send, target="store")
    sender.notify()
    while not attempts:
        time.sleep(0.001)
    assert not sender.close(timeout_seconds=5)
    assert len(attempts) == 2
