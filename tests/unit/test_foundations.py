"""Errors, files, registry, workspace: what everything else stands on."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cifarflow import errors, files
from cifarflow.errors import ConfigError, DataIntegrityError, MissingInputError, UnknownNameError
from cifarflow.registry import Registry
from cifarflow.workspace import Workspace
from tests.support.small import PROJECT


def raising(error: BaseException) -> int:
    def main() -> None:
        raise error

    return errors.run(main)


def test_a_users_fault_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(ConfigError("epochs must be positive")) == 2
    assert capsys.readouterr().err == "error: epochs must be positive\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that a process can catch")
def test_sigterm_ends_a_process_as_ctrl_c_does_with_everything_closed() -> None:
    script = (
        "import contextlib, sys, time\nfrom cifarflow import errors\n"
        "def main():\n"
        "    with contextlib.ExitStack() as stack:\n"
        "        stack.callback(print, 'closed', flush=True)\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "sys.exit(errors.run(main))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "closed\n")
    assert err == "stopped by SIGTERM; run the same command again\n"


def test_a_full_disk_names_the_file_and_the_way_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(OSError(errno.ENOSPC, "No space left on device", "/data/x")) == 2
    message = capsys.readouterr().err
    assert "cannot write or read /data/x: No space left on device" in message
    assert "uv run dvc checkout" in message
    assert "git checkout metrics plots" in message, "these are in Git: DVC cannot bring them back"


def test_a_second_interrupt_leaves_the_first_ones_hint(capsys: pytest.CaptureFixture[str]) -> None:
    """Pressed again while things are closed, which may take seconds."""

    def main() -> None:
        try:
            raise KeyboardInterrupt("stopped after step 3")
        finally:
            raise KeyboardInterrupt

    assert errors.run(main) == 130
    assert capsys.readouterr().err == "stopped after step 3\n"


def test_an_interrupt_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt("stopped after step 3")) == 130
    assert "stopped after step 3" in capsys.readouterr().err


def test_a_bug_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())
    with pytest.raises(OSError, match="odd"):
        raising(OSError(errno.EBADF, "odd"))


def test_success_is_exit_code_0() -> None:
    assert errors.run(lambda: None) == 0


def test_a_missing_input_names_the_stage() -> None:
    assert "uv run dvc repro train" in str(MissingInputError(Path("models/model.json"), made_by="train"))


# files


def test_an_atomic_file_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.bin"
    files.write_bytes(target, b"old")
    with pytest.raises(RuntimeError), files.atomic_open(target) as stream:
        stream.write(b"half of the ne")
        raise RuntimeError("killed")
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


KILLED_WHILE_WRITING = """\
import os, signal, sys
from pathlib import Path
from cifarflow import files
with files.atomic_open(Path(sys.argv[1])) as stream:
    stream.write(b"half of the ne")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("name", ["file.bin", "own[1].bin"])
def test_what_a_killed_process_had_written_goes_with_the_next_write_and_nothing_else(
    tmp_path: Path, name: str
) -> None:
    target = tmp_path / name
    files.write_bytes(target, b"old")
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    (left,) = tmp_path.glob(".*.part")
    assert left.read_bytes() == b"half of the ne"
    others = {".other.bin.x.part", ".own1.bin.x.part", "file.bin.part", "cifar.part"}
    for other in others:
        (tmp_path / other).touch()
    files.write_bytes(target, b"new")
    assert target.read_bytes() == b"new"
    assert {path.name for path in tmp_path.iterdir()} == {name, *others}


@pytest.mark.parametrize("blocked", ["plots", "plots/deep"])
def test_a_file_where_a_folder_should_be_is_one_line(
    tmp_path: Path, blocked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system says of the one that it exists, and of what would lie in it that it is no folder."""
    (tmp_path / "plots").touch()
    assert errors.run(lambda: files.write_text(tmp_path / blocked / "history.csv", "")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot write or read {tmp_path / blocked}")
    assert "mend the path" in line


@pytest.mark.parametrize("blocked", ["data/raw", "data/raw/shapes"])
def test_a_stage_names_a_file_where_its_folder_should_be(tmp_path: Path, blocked: str) -> None:
    recipe = (PROJECT / "recipes" / "shapes.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(recipe, encoding="utf-8")
    (tmp_path / blocked).parent.mkdir(parents=True)
    (tmp_path / blocked).touch()
    command = [sys.executable, str(PROJECT / "stages" / "download.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith(f"error: cannot write or read {tmp_path / 'data' / 'raw'}")


def test_json_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    files.write_json(tmp_path / "b.json", {"a": "ü", "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert files.read_json(tmp_path / "a.json") == {"a": "ü", "b": 1}


def test_tensors_survive_and_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    files.write_tensors(path, {"images": images.transpose(0, 2, 1)})
    np.testing.assert_array_equal(files.read_tensors(path)["images"], images.transpose(0, 2, 1))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataIntegrityError, match=r"x\.safetensors is broken"):
        files.read_tensors(path)
    path.write_text("{")
    with pytest.raises(DataIntegrityError, match="not valid JSON"):
        files.read_json(path)


def test_the_digest_of_values_ignores_the_order_of_keys() -> None:
    assert files.digest_of({"a": 1, "b": [2]}) == files.digest_of({"b": [2], "a": 1})
    assert files.digest_of({"a": 1}) != files.digest_of({"a": 2})


# registry, workspace


def test_a_registry_refuses_doubles_and_offers_the_nearest() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("seven")(7)
    assert registry.get("seven") == 7
    with pytest.raises(ValueError, match="'seven' is registered twice"):
        registry.register("seven")(8)
    with pytest.raises(UnknownNameError, match=r"unknown number 'sevn' \(here\)\. Did you mean 'seven'\?"):
        registry.get("sevn", where="here")


def test_what_must_outlive_a_stage_lies_at_dvc_root(tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "temporary", {"DVC_ROOT": str(tmp_path / "home")})
    assert workspace.model_weights.is_relative_to(tmp_path / "temporary")
    for path in (
        workspace.checkpoints("key"),
        workspace.journals,
        workspace.mlflow_database,
    ):
        assert path.is_relative_to(tmp_path / "home")
    assert workspace.is_temporary
    assert Workspace.at(tmp_path, {}).home == tmp_path and not Workspace.at(tmp_path, {}).is_temporary


@pytest.mark.parametrize("name", ["", ".", "..", "../beside", "a/b", "*", "/"])
def test_a_name_that_leads_elsewhere_removes_nothing(tmp_path: Path, name: str) -> None:
    """It may come out of a model.json of somebody else."""
    for folder in ("parent/a/b", "beside"):
        (tmp_path / folder).mkdir(parents=True)
    files.remove_folder(tmp_path / "parent", name)
    files.remove_folder(tmp_path / "parent", str(tmp_path / "beside"))
    assert (tmp_path / "parent/a/b").is_dir() and (tmp_path / "beside").is_dir()


def test_the_folder_of_a_name_is_removed_with_all_in_it(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    files.remove_folder(tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
