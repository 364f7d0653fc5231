"""Checkpoints: whole or passed over, bounded in number, free of code."""

from pathlib import Path

import pytest
import torch

from cifarflow.training.checkpoint import KEPT, Checkpoints

STATE = {"model": {"weight": torch.arange(3.0)}, "step": 7, "history": [{"loss": 0.5}]}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(folder=tmp_path / "run", interval_seconds=60)


def test_a_state_comes_back_as_it_was(checkpoints: Checkpoints) -> None:
    checkpoints.save(STATE, step=7)
    loaded = checkpoints.load()
    assert loaded is not None
    assert torch.equal(loaded["model"]["weight"], STATE["model"]["weight"])
    assert (loaded["step"], loaded["history"]) == (7, [{"loss": 0.5}])


def test_an_empty_folder_has_none(checkpoints: Checkpoints) -> None:
    assert checkpoints.load() is None


def test_only_the_last_states_are_kept(checkpoints: Checkpoints) -> None:
    for step in range(5):
        checkpoints.save({**STATE, "step": step}, step=step)
    assert len(list(checkpoints.folder.iterdir())) == KEPT
    assert checkpoints.load()["step"] == 4  # pyright: ignore


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "empty"])
def test_a_damaged_file_is_passed_over(
    checkpoints: Checkpoints, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints.save({**STATE, "step": 1}, step=1)
    newest = checkpoints.save({**STATE, "step": 2}, step=2)
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    else:
        content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert checkpoints.load()["step"] == 1  # pyright: ignore
    assert f"{newest} is damaged" in caplog.text


def test_the_interval_runs_from_the_last_save(tmp_path: Path) -> None:
    now = [0.0]
    checkpoints = Checkpoints(folder=tmp_path, interval_seconds=10, clock=lambda: now[0])
    now[0] = 9.0
    assert not checkpoints.is_due()
    now[0] = 10.0
    assert checkpoints.is_due()
    checkpoints.save(STATE, step=1)
    assert not checkpoints.is_due()
