"""Checkpoints that were damaged or forged: the run goes on from the one before, and nothing in them is run.

Truncated and flipped ones are in test_checkpoint.py: their digest tells. These have the right digest.
"""

import contextlib
import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarflow.training.checkpoint import FORMAT, Checkpoints
from tests.support.hostile import Exploit


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """With one sound state, of step 1."""
    checkpoints = Checkpoints(folder=tmp_path / "run", interval_seconds=60)
    checkpoints.save({"step": 1}, step=1)
    return checkpoints


def forge(folder: Path, content: bytes) -> Path:
    """A checkpoint of step 2 with these bytes and the digest that belongs to them."""
    path = folder / f"step-000000002-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    path.write_bytes(content)
    return path


def with_pickle(content: bytes) -> bytes:
    """A file as torch writes it, with another pickle inside."""
    source, target = zipfile.ZipFile(io.BytesIO(saved({"step": 2}))), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, content if name.endswith("data.pkl") else source.read(name))
    return target.getvalue()


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        "code",
        "old pickle",
        "no zip",
        "nothing",
        "list",
        "no format",
        "no sense",
    ],
)
def test_a_forged_state_is_passed_over_with_a_warning(
    checkpoints: Checkpoints, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = {
        "code": saved({"format": FORMAT, "step": Exploit(tmp_path / "proof")}),
        "old pickle": pickle.dumps(Exploit(tmp_path / "proof"), protocol=2),
        "no zip": b"PK\3\4" + bytes(100),
        "nothing": b"",
        "list": saved([1, 2]),
        "no format": saved({"step": 2}),
        "no sense": with_pickle(b"\x80\2a."),
    }
    forged = forge(checkpoints.folder, contents[kind])
    assert checkpoints.load() == {"format": FORMAT, "step": 1}
    assert str(forged) in caplog.text


@pytest.mark.parametrize("kind", ["code", "old pickle"])
def test_no_forged_state_runs_code(checkpoints: Checkpoints, kind: str, tmp_path: Path) -> None:
    exploit = Exploit(tmp_path / "proof")
    forge(
        checkpoints.folder,
        pickle.dumps(exploit, protocol=2) if kind == "old pickle" else saved({"format": exploit}),
    )
    with contextlib.suppress(pickle.UnpicklingError):
        checkpoints.load()
    assert not (tmp_path / "proof").exists()
    pickle.loads(pickle.dumps(exploit))
    assert (tmp_path / "proof").exists(), "the attack itself works"


def test_a_folder_under_the_name_of_a_state_is_passed_over(checkpoints: Checkpoints) -> None:
    (checkpoints.folder / "step-000000002-0123456789abcdef.pt").mkdir()
    assert checkpoints.load() == {"format": FORMAT, "step": 1}
