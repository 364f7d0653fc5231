"""The benchmark that compares with a public record's own script, with a small script and on the processor."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import elsewhere, gpu_overhead, gpu_steps, gpu_time, gpu_training, processes
from benchmarks.gpu_training import Trainer
from benchmarks.published_script import Training, read_table, run_script
from benchmarks.setting import PROJECT, recipe
from cifarflow.config import Config
from cifarflow.config.schema import TrainConfig
from cifarflow.errors import ConfigError
from tests.support.small import small_config, small_workspace

SCRIPT = """
import pathlib, sys
assert pathlib.Path("beside").exists(), "started where its repository lies"
print("| run     | epoch | train_acc | val_acc | tta_val_acc | {seconds} |")
{warmup}
for run in range(200):
    print(f"| {{run}} |     0 |    0.6000 |  0.5000 |             |    1.0000 |")
    print(f"|         |  eval |    0.9900 |  0.9300 |      0.94{{run:02d}} |   {{run + 2}}.5000 |")
"""
WARMUP = 'print("| warmup  | eval  | 0.1000    | 0.1000  | 0.1000      | 99.0000   |")'


@pytest.mark.parametrize("seconds", ["time_seconds", "total_time_seconds"])
@pytest.mark.parametrize("warmup", [WARMUP, ""], ids=["as airbench94", "as airbench96"])
def test_a_records_own_script_trains_as_often_as_asked(tmp_path: Path, seconds: str, warmup: str) -> None:
    (tmp_path / "beside").touch()
    script = tmp_path / "record.py"
    text = SCRIPT.format(seconds=seconds, warmup=warmup)
    script.write_text(text)
    assert run_script(script, runs=2) == [
        Training(accuracy=0.9401, seconds=3.5),
        Training(accuracy=0.9402, seconds=4.5),
    ], "a script without a row that only warms up compiles inside its first training"
    assert script.read_text() == text


def test_a_script_that_is_none_of_the_records_or_fails_is_named(tmp_path: Path) -> None:
    script = tmp_path / "other.py"
    script.write_text("print('hello')")
    with pytest.raises(SystemExit, match=r"other\.py says .* 0 times"):
        run_script(script, runs=2)
    script.write_text("for run in range(200): raise SystemExit(3)")
    with pytest.raises(SystemExit, match="ended with 3 after 0 of 3 trainings"):
        run_script(script, runs=2)


def test_only_rows_that_close_a_training_count() -> None:
    assert read_table("no table\n| a | b |\n") == []


def test_our_side_is_a_whole_training_with_its_test(tmp_path: Path) -> None:
    config = small_config(
        model__speednet__widths=[16, 32, 32],
        train__epochs=24,
        train__optimizer__name="adamw",
        train__optimizer__adamw__learning_rate=0.01,
    )
    workspace = small_workspace(tmp_path, config)
    trainer = Trainer.load(config, workspace)
    trained = trainer.train(seed=1)
    assert trained.accuracy > 0.3, "ten classes: 0.1 by chance"
    assert 0 < trained.seconds < 60
    assert trainer.train(seed=1).accuracy == trained.accuracy, "each starts anew"


def test_on_a_gpu_a_recipe_takes_whole_batches() -> None:
    config = gpu_training.recipe_on_gpu("cifar94")
    assert config.train.micro_batch_size == "auto"
    assert config.train.batch_size == gpu_training.RECORDS_BATCH_SIZE
    assert config.train.optimizer == recipe("cifar94").train.optimizer


def command(*options: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "benchmarks.gpu_time", *options]
    return subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU is one missing")
def test_what_is_missing_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    nowhere = command("--script", str(tmp_path / "airbench.py"))
    assert nowhere.returncode == 2 and "there is no file" in nowhere.stderr
    no_gpu = command("--script", str(Path(__file__)))
    assert no_gpu.returncode != 0 and "Traceback" not in no_gpu.stderr
    assert no_gpu.stderr.startswith("error: ")


def test_times_are_compared_only_of_those_who_reach_the_target(capsys: pytest.CaptureFixture[str]) -> None:
    fast = [Training(accuracy=0.94, seconds=2.0), Training(accuracy=0.942, seconds=4.0)]
    slow = [Training(accuracy=0.941, seconds=6.0)] * 2
    result = gpu_time.compare(fast, slow, target=0.94, against="record.py")
    assert (result.value, result.low, result.high, result.met) == (0.5, 2 / 6, 4 / 6, True)
    gpu_time.check_accuracy("ours", fast, target=0.94)
    assert (
        "ours: accuracy 0.9410, standard deviation 0.0014; 3.000 s (2.000 to 4.000)"
        in capsys.readouterr().out
    )
    short = [Training(accuracy=0.9, seconds=1.0)]
    with pytest.raises(SystemExit, match=r"ours reaches 0.9000 as a mean, below 0.94"):
        gpu_time.check_accuracy("ours", short, target=0.94)
    with pytest.raises(SystemExit, match=r"record.py reaches 0.9000 as a mean, below 0.94"):
        gpu_time.compare(fast, short, target=0.94, against="record.py")


def test_two_gpus_are_compared_where_there_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert not processes.on_gpus()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert processes.on_gpus()


# Forms of a step, and what is beside the steps ----------------------------------------------------------------------


def config_for_seconds() -> Config:
    """Two epochs of two steps over a hundred pictures."""
    return small_config(train__device="cpu", train__epochs=2)


def test_of_a_way_the_first_training_and_the_later_ones_are_told_apart() -> None:
    found = gpu_steps.measure_way(config_for_seconds(), again=3, count=100)
    assert found.first_seconds > 0 and len(found.later_seconds) == 3 and min(found.later_seconds) > 0
    assert found.peak_gib == 0, "on a processor"
    row = gpu_steps.Found(first_seconds=12.0, later_seconds=[3.0, 1.0, 2.0], peak_gib=1.5).row("compiled")
    assert row == "| compiled | 12.00 | 2.000 (1.000 to 3.000) | 1.50 |"


def test_the_price_of_determinism_is_the_only_difference_between_two_ways() -> None:
    with_it = gpu_steps.WAYS["deterministic, CUDA graphs"]
    assert with_it == {**gpu_steps.WAYS["CUDA graphs"], "deterministic": True}
    assert {name for way in gpu_steps.WAYS.values() for name in way} <= set(TrainConfig.model_fields)


def test_no_way_finds_what_another_compiled() -> None:
    program = (
        "import json, os, pathlib\n"
        "folder = pathlib.Path(os.environ['TORCHINDUCTOR_CACHE_DIR'])\n"
        "assert folder.is_dir() and not [*folder.iterdir()]\n"
        "assert folder in pathlib.Path(os.environ['TRITON_CACHE_DIR']).parents\n"
        "print(json.dumps({'folder': str(folder), 'process': os.getpid()}))"
    )
    first, second = (gpu_steps.answer_with_empty_caches([sys.executable, "-c", program]) for _ in range(2))
    assert first["folder"] != second["folder"] and first["process"] != second["process"]
    assert not Path(first["folder"]).exists() and not Path(second["folder"]).exists()


def test_each_way_is_measured_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs: list[list[str]] = []

    def answer(program: list[str]) -> dict[str, object]:
        programs.append(program)
        return {"first_seconds": 1.0, "later_seconds": [1.0], "peak_gib": 0.0}

    monkeypatch.setattr(
        gpu_steps, "choose_device", lambda device: (torch.device(device), "a GPU of a test's")
    )
    monkeypatch.setattr(gpu_steps, "answer_with_empty_caches", answer)
    monkeypatch.setattr(sys, "argv", ["gpu_steps", "--again", "2"])
    gpu_steps.main()
    assert [program[-1] for program in programs] == list(gpu_steps.WAYS)
    assert {tuple(program[:-1]) for program in programs} == {
        (*(sys.executable, "-m", "benchmarks.gpu_steps"), "--recipe", "cifar94", "--again", "2", "--way")
    }
    shown = capsys.readouterr().out
    assert all(f"| {way} | 1.00 |" in shown for way in gpu_steps.WAYS) and "a GPU of a test's" in shown


def test_a_process_answers_with_all_that_its_way_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = gpu_steps.Found(first_seconds=9.5, later_seconds=[2.0, 3.0], peak_gib=1.25)
    asked: list[tuple[Config, int]] = []

    def measure_way(config: Config, *, again: int) -> gpu_steps.Found:
        asked.append((config, again))
        return found

    monkeypatch.setattr(gpu_steps, "measure_way", measure_way)
    monkeypatch.setattr(
        sys,
        "argv",
        ["gpu_steps", "--way", "deterministic, CUDA graphs", "--again", "2", "--recipe", "cifar96"],
    )
    gpu_steps.main()
    assert gpu_steps.Found(**json.loads(capsys.readouterr().out)) == found
    ((config, again),) = asked
    assert again == 2 and config.train.deterministic and config.train.epochs == recipe("cifar96").train.epochs


def test_trainings_with_everything_on_and_off_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminals: list[gpu_overhead.Terminal] = []

    class Kept(gpu_overhead.Terminal):
        def __init__(self) -> None:
            super().__init__()
            terminals.append(self)

    monkeypatch.setattr(gpu_overhead, "Terminal", Kept)
    monkeypatch.setenv("TERM", "xterm-256color")
    found = gpu_overhead.measure(config_for_seconds(), tmp_path, rounds=2, count=100)
    assert len(found.off) == 2 and min(found.off) > 0
    assert len(found.on) == len(found.loop) == 2, "of three, the first of which pays for the others"
    assert all(0 < loop < on for loop, on in zip(found.loop, found.on, strict=True))
    assert len(terminals) == 3 and all("images/s" in terminal.getvalue() for terminal in terminals)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        assert store.execute("select status, count(*) from runs group by status").fetchall() == [
            ("FINISHED", 3)
        ]
        ((scalars,),) = store.execute("select count(*) from metrics where key = 'train_loss'").fetchall()
        assert scalars == 3 * 2, "two epochs each"
    for pattern in (
        "saved/*/step-*.pt",
        "**/journals/*/artifacts/plots/history.csv",
        "**/events.out.tfevents.*",
    ):
        assert len([*tmp_path.glob(pattern)]) == 3, pattern


def test_trainings_are_compared_by_their_medians(capsys: pytest.CaptureFixture[str]) -> None:
    found = gpu_overhead.Found(
        on=[2.2, 2.0, 2.4], off=[2.0, 1.0, 2.5], loop=[2.1, 1.9, 2.3], import_seconds=0.7
    )
    result = gpu_overhead.result_of(found, machine="a GPU of a test's")
    assert (result.value, result.low, result.high) == (pytest.approx(1.1), pytest.approx(0.96), 2.0)
    assert not result.met and result.goal_text == "<= 1.03"
    assert result.note == (
        "a GPU of a test's; 2 s a training without; the training loop alone 1.05; "
        "not counted: mlflow's import, 0.7 s once a process"
    )
    assert "| with everything on | 2.2 (2 to 2.4) |" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU is one missing")
@pytest.mark.parametrize("module", [gpu_steps, gpu_overhead])
def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__])
    with pytest.raises(ConfigError, match="torch sees no CUDA device here"):
        module.main()


# The rows of docs/benchmarks.md --------------------------------------------------------------------------------------


def options_of(name: str, module: str) -> list[str]:
    (entry,) = (entry for entry in elsewhere.ROWS if entry.name == name)
    program, _, options = entry.command.partition(f"benchmarks.{module} ")
    assert program == "uv run python -m "
    return options.split()


@pytest.mark.parametrize("name", ["gpu-94", "gpu-96"])
def test_the_records_are_met_by_compiled_steps_as_their_own_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of(name, "gpu_time")
    assert "--compile" in options
    options[options.index("--script") + 1] = str(tmp_path / "nowhere.py")
    monkeypatch.setattr(sys, "argv", ["gpu_time", *options])
    with pytest.raises(SystemExit):
        gpu_time.main()
    assert "nowhere.py; it lies in a clone" in capsys.readouterr().err, "every other option is one"


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would be measured")
def test_the_row_of_the_overhead_has_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_overhead", *options_of("gpu-overhead", "gpu_overhead")])
    with pytest.raises(ConfigError, match="torch sees no CUDA device here"):
        gpu_overhead.main()
