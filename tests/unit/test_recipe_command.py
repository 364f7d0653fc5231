import re
import shutil
from pathlib import Path

import pytest

from cifarflow import cli
from cifarflow.config import load_config

REPOSITORY = Path(__file__).parents[2]
QUICK = "# Recipe quick: drawn figures in a minute."


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the recipe cifar94, in use, and a variant of it named quick."""
    (tmp_path / "recipes").mkdir()
    original = REPOSITORY / "recipes" / "cifar94.yaml"
    shutil.copy(original, tmp_path / "recipes")
    shutil.copy(original, tmp_path / "params.yaml")
    quick = original.read_text(encoding="utf-8")
    for old, new in ((r"\A#.*", QUICK), (r"^seed: \d+", "seed: 77"), (r"^  epochs: [\d.]+", "  epochs: 777")):
        quick, count = re.subn(old, new, quick, count=1, flags=re.MULTILINE)
        assert count == 1
    (tmp_path / "recipes" / "quick.yaml").write_text(quick, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def test_the_list_has_each_recipe_and_its_first_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["recipe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["cifar94", "quick"]
    assert lines[1] == "quick    drawn figures in a minute."


def test_a_recipe_replaces_params_shows_the_changes_and_keeps_the_old_file(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = (project / "params.yaml").read_bytes() + b"# my note\n"
    (project / "params.yaml").write_bytes(old)
    assert cli.main(["recipe", "quick"]) == 0
    assert (project / "params.yaml").read_bytes() == (project / "recipes" / "quick.yaml").read_bytes()
    assert (project / ".cifarflow" / "params.previous.yaml").read_bytes() == old
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"seed: \d+ -> 77", lines[0])
    assert re.fullmatch(r"train\.epochs: [\d.]+ -> 777", lines[1])
    assert str(Path(".cifarflow/params.previous.yaml")) in lines[2]
    assert "uv run dvc repro" in lines[3]


def test_trying_one_recipe_after_another_keeps_the_values_that_a_person_wrote(project: Path) -> None:
    params = project / "params.yaml"
    mine = params.read_bytes() + b"# my note\n"
    params.write_bytes(mine)
    for name in ("quick", "cifar94"):
        assert cli.main(["recipe", name]) == 0
    assert (project / ".cifarflow" / "params.previous.yaml").read_bytes() == mine


def test_equal_values_leave_the_file_and_its_comments_alone(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = project / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8") + "# my note\n", encoding="utf-8")
    before = params.read_bytes()
    assert cli.main(["recipe", "cifar94.yaml"]) == 0
    assert "left as it is" in capsys.readouterr().out
    assert params.read_bytes() == before
    assert not (project / ".cifarflow").exists()


@pytest.mark.parametrize(
    "broken", [b"seed: [", b"seed: one\n", b"\xff\xfe\x00"], ids=["yaml", "value", "bytes"]
)
def test_a_broken_params_file_is_replaced_and_kept(
    project: Path, broken: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "params.yaml").write_bytes(broken)
    assert cli.main(["recipe", "quick"]) == 0
    assert load_config(project / "params.yaml").train.epochs == 777
    assert (project / ".cifarflow" / "params.previous.yaml").read_bytes() == broken
    output = capsys.readouterr().out
    assert "could not be read" in output
    assert "->" not in output


def test_a_missing_params_file_is_written(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "params.yaml").unlink()
    assert cli.main(["recipe", "quick"]) == 0
    assert load_config(project / "params.yaml").train.epochs == 777
    assert "kept" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cifra94", "../params", "recipes/quick"])
def test_an_unknown_name_changes_nothing(
    project: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (project / "params.yaml").read_bytes()
    assert cli.main(["recipe", name]) == 2
    error = capsys.readouterr().err
    assert f"unknown recipe {name!r}" in error
    assert "Known: cifar94, quick" in error
    assert (project / "params.yaml").read_bytes() == before


def test_the_nearest_name_is_offered(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipe", "cifra94"]) == 2
    assert "Did you mean 'cifar94'?" in capsys.readouterr().err


def test_a_recipe_with_faults_changes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (project / "params.yaml").read_bytes()
    (project / "recipes" / "quick.yaml").write_text("# Recipe quick: broken\nseed: -1\n", encoding="utf-8")
    assert cli.main(["recipe", "quick"]) == 2
    assert "quick.yaml has" in capsys.readouterr().err
    assert (project / "params.yaml").read_bytes() == before


def test_a_folder_without_recipes_says_where_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipe"]) == 2
    assert "holds no recipes. Run from the project's folder" in capsys.readouterr().err
