import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cifarflow import cli

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "mlflow", "onnx", "matplotlib", "sklearn", "pydantic")
PROBE = f"""
import sys
from cifarflow.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
print("imported:", sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
sys.exit(code)
"""


def cifarflow(*arguments: str, folder: Path, probe: bool = False) -> "subprocess.CompletedProcess[str]":
    """The command as a user starts it."""
    start = ["-c", PROBE] if probe else ["-m", "cifarflow.cli"]
    environ = {**os.environ, "PYTHONUTF8": "1"}
    command = [sys.executable, "-W", "error", *start, *arguments]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)


@pytest.fixture
def project(tmp_path: Path, colour_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with an exported model and a few pictures, and the current folder."""
    (tmp_path / "params.yaml").touch()
    (tmp_path / "models" / "export").mkdir(parents=True)
    (tmp_path / "models" / "export" / "model.onnx").write_bytes(colour_model.read_bytes())
    for name in ("red", "green", "blue"):
        Image.new("RGB", (20, 12), name).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.jpg").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


# as processes -----------------------------------------------------------------------------------------------


def test_predict_answers_the_good_pictures_and_exits_2_for_a_bad_one(project: Path) -> None:
    done = cifarflow("predict", "red.png", "bad.jpg", "blue.png", "--top", "1", folder=project, probe=True)
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["red.png", "red"],
        ["blue.png", "blue"],
    ]
    error, imported = done.stderr.splitlines()
    assert error.startswith("error: bad.jpg")
    assert imported == "imported: []"
    assert done.returncode == 2


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    done = cifarflow("--help", folder=tmp_path, probe=True)
    assert done.returncode == 0
    assert done.stderr == "imported: []\n"
    for command in ("predict", "recipe", "sync"):
        assert command in done.stdout


def test_a_missing_model_is_one_line_that_names_the_next_step(tmp_path: Path) -> None:
    done = cifarflow("predict", "cat.jpg", folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "model.onnx is missing" in done.stderr
    assert "uv run dvc repro export" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_has_enough_is_no_error(project: Path) -> None:
    command = [sys.executable, "-m", "cifarflow.cli", "predict", *["red.png"] * 3000, "--top", "1"]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


# in this process --------------------------------------------------------------------------------------------


def test_without_a_command_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "usage: cifarflow" in capsys.readouterr().out


def test_json_is_one_object_a_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "red.png", "green.png", "--json", "--top", "2"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["picture"] for answer in answers] == ["red.png", "green.png"]
    assert [answer["predictions"][0]["label"] for answer in answers] == ["red", "green"]
    assert [len(answer["predictions"]) for answer in answers] == [2, 2]
    assert answers[0]["predictions"][0]["probability"] > 0.9


def test_columns_stand_below_each_other(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "red.png", "green.png"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.index("red ") == second.index("green ")
    assert len(first) == len(second)


def test_a_folder_stands_for_the_pictures_in_it_sorted(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "bad.jpg").unlink()
    for path in ("more/z.PNG", "more/.hidden.png", ".cache/x.png", "notes.txt"):
        (project / path).parent.mkdir(exist_ok=True)
        (project / "red.png").rename(project / path) if path == "more/z.PNG" else (project / path).touch()
    assert cli.main(["predict", ".", "--top", "1"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "blue.png",
        "green.png",
        str(Path("more/z.PNG")),
    ]


def test_a_folder_without_pictures_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "empty").mkdir()
    assert cli.main(["predict", "empty", "red.png"]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: empty holds no pictures (")
    assert output.out.startswith("red.png")


def test_a_picture_that_does_not_exist_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "cat.jpg"]) == 2
    assert capsys.readouterr().err.startswith("error: cat.jpg cannot be read: No such file")


def test_predict_works_below_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(project / "deep" / "er")
    assert cli.main(["predict", "../../green.png", "--top", "1"]) == 0
    assert "green" in capsys.readouterr().out


def test_another_model_can_be_named(
    project: Path, colour_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", "red.png", "--model", str(colour_model)]) == 0
    assert cli.main(["predict", "red.png", "--model", "nowhere.onnx"]) == 2
    assert "--model nowhere.onnx: there is no such file" in capsys.readouterr().err


def test_a_broken_model_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "models" / "export" / "model.onnx").write_bytes(b"garbage")
    assert cli.main(["predict", "red.png"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5"])
def test_top_must_be_a_positive_whole_number(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", "red.png", f"--top={wrong}"])
    assert stop.value.code == 2
    assert f"{wrong!r} is not a whole number of at least 1" in capsys.readouterr().err


def test_sync_with_tracking_off_says_which_value_to_change(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = (REPOSITORY / "recipes" / "cifar94.yaml").read_text(encoding="utf-8")
    off, count = re.subn(r"(  mlflow:\n    enabled:) true", r"\1 false", recipe)
    assert count == 1
    (project / "params.yaml").write_text(off, encoding="utf-8")
    assert cli.main(["sync"]) == 2
    assert "tracking.mlflow.enabled is false" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "recipe", "sync"])
def test_each_command_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"uv run cifarflow {command}" in capsys.readouterr().out


# check ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_pictures(tmp_path: Path) -> Path:
    """A checkout with good params for own pictures, and a few of them."""
    recipe = (REPOSITORY / "recipes" / "shapes.yaml").read_text()
    (tmp_path / "params.yaml").write_text(recipe.replace("source: shapes", "source: folder"))
    for number, name in enumerate(("red", "green")):
        folder = tmp_path / "data" / "images" / name
        folder.mkdir(parents=True)
        for shade in range(4):
            Image.new("RGB", (20, 20), (shade * 9, number * 99, 7)).save(folder / f"{shade}.png")
    return tmp_path


def test_check_tells_of_sound_params_and_pictures_without_torch(own_pictures: Path) -> None:
    done = cifarflow("check", folder=own_pictures, probe=True)
    assert done.stdout.splitlines() == ["params.yaml is sound.", "8 pictures of 2 classes are sound."]
    assert done.stderr.splitlines()[-1] == "imported: ['pydantic']"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9 if n else 1}]\n" for n in range(9)), "YAML alias"),
        ("seed: 1\n", "seed"),
        ("x: " + "[" * 3000, "nested"),
    ],
    ids=["aliases", "doubled key", "brackets"],
)
def test_check_names_in_a_line_what_dvc_chokes_on(own_pictures: Path, more: str, told: str) -> None:
    with (own_pictures / "params.yaml").open("a") as params:
        params.write(more)
    done = cifarflow("check", folder=own_pictures)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "params.yaml" in line and told in line


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_check_does_not_wait_for_a_pipe_among_the_pictures(own_pictures: Path) -> None:
    images = own_pictures / "data" / "images"
    os.mkfifo(images / "red" / "pipe.png")
    (images / "green" / "endless.png").symlink_to("/dev/zero")
    (images / "red" / "0.png").rename(os.fsdecode(os.fsencode(images / "red") + b"/bad\xff.png"))
    done = cifarflow("check", folder=own_pictures)
    assert done.returncode == 2
    for name in ("pipe.png", "endless.png", "bad"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr
