"""The benchmark that compares with a public record's own script, with a small script and on the processor."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_time, gpu_training, processes
from benchmarks.gpu_training import Trainer
from benchmarks.published_script import Training, read_table, run_script
from benchmarks.setting import PROJECT, recipe
from tests.support.small import small_config, small_workspace

SCRIPT = """
import pathlib, sys
assert pathlib.Path("beside").exists(), "started where its repository lies"
print("| run     | epoch | train_acc | val_acc | tta_val_acc | {seconds} |")
print("| warmup  | eval  | 0.1000    | 0.1000  | 0.1000      | 99.0000   |")
for run in range(200):
    print(f"| {{run}} |     0 |    0.6000 |  0.5000 |             |    1.0000 |")
    print(f"|         |  eval |    0.9900 |  0.9300 |      0.94{{run:02d}} |   {{run + 2}}.5000 |")
"""


@pytest.mark.parametrize("seconds", ["time_seconds", "total_time_seconds"])
def test_a_records_own_script_trains_as_often_as_asked(tmp_path: Path, seconds: str) -> None:
    (tmp_path / "beside").touch()
    script = tmp_path / "record.py"
    script.write_text(SCRIPT.format(seconds=seconds))
    assert run_script(script, runs=2) == [
        Training(accuracy=0.94, seconds=2.5),
        Training(accuracy=0.9401, seconds=3.5),
    ], "the first row of all only warms up"
    assert script.read_text() == SCRIPT.format(seconds=seconds)


def test_a_script_that_is_none_of_the_records_or_fails_is_named(tmp_path: Path) -> None:
    script = tmp_path / "other.py"
    script.write_text("print('hello')")
    with pytest.raises(SystemExit, match=r"other\.py says .* 0 times"):
        run_script(script, runs=2)
    script.write_text("for run in range(200): raise SystemExit(3)")
    with pytest.raises(SystemExit, match="ended with 3 after 0 of 2 trainings"):
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
    assert config.model.speednet.batch_norm_momentum == gpu_training.RECORDS_BATCH_NORM_MOMENTUM
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
    assert (
        "ours: accuracy 0.9410, standard deviation 0.0014; 3.000 s (2.000 to 4.000)"
        in capsys.readouterr().out
    )
    short = [Training(accuracy=0.9, seconds=1.0)]
    for ours, record, side in ((short, slow, "ours"), (fast, short, "record.py")):
        with pytest.raises(SystemExit, match=f"{side} reaches 0.9000 as a mean, below 0.94"):
            gpu_time.compare(ours, record, target=0.94, against="record.py")


def test_two_gpus_are_compared_where_there_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert not processes.on_gpus()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert processes.on_gpus()
