"""The benchmarks' parts on tiny inputs: what they count, in what order they measure, and what they make of it."""

import importlib
import multiprocessing
import re
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as runner
from benchmarks import (
    airbench94,
    arithmetic,
    augmentation,
    checkout,
    course_epoch,
    elsewhere,
    loss_curves,
    memory,
    outage,
    overhead,
    overhead_costs,
    processes,
    random_task,
    recipe_time,
    report,
    stages_time,
)
from benchmarks.no_checkpoints import NoCheckpoints
from benchmarks.pairs import alternate, ratios, second_of_two
from benchmarks.pictures import random_raw
from benchmarks.result import Result, Spread
from benchmarks.setting import PROJECT, recipe_on_cpu
from cifarflow.compute.plan import plan_compute
from cifarflow.config import Config, load_config
from cifarflow.config.schema import AugmentConfig
from cifarflow.data.packed import Split
from cifarflow.errors import ConfigError
from cifarflow.workspace import Workspace

RESULT = Result(
    name="a side",
    against="another",
    goal=0.5,
    at_least=False,
    unit="x",
    value=0.4,
    low=0.3,
    high=0.6,
    rounds=3,
    note="of a test",
)


@pytest.fixture(scope="module")
def tiny() -> Config:
    """The default recipe with a network and batches that take milliseconds."""
    config = recipe_on_cpu("cifar94")
    speednet = config.model.speednet.model_copy(update={"widths": (8, 8, 8)})
    train = config.train.model_copy(
        update={"batch_size": 40, "micro_batch_size": 20, "precision": "fp32", "epochs": 10.5}
    )
    model = config.model.model_copy(update={"speednet": speednet})
    return config.model_copy(update={"model": model, "train": train})


# Results and pairs ---------------------------------------------------------------------------------------------------


def test_a_result_says_what_was_measured_and_goes_through_json_unchanged() -> None:
    assert RESULT.met and not replace(RESULT, value=0.51).met
    assert not replace(RESULT, at_least=True).met and replace(RESULT, at_least=True, value=0.5).met
    assert RESULT.goal_text == "<= 0.5"
    assert RESULT.measured_text == "0.4 (0.3 to 0.6, 3 rounds)"
    assert replace(RESULT, unit="GiB", rounds=1).measured_text == "0.4 GiB (0.3 to 0.6, 1 round)"
    assert "\n" not in RESULT.to_json()
    assert Result.from_json(RESULT.to_json()) == RESULT


def test_a_spread_of_nothing_is_refused() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(median=2.0, low=1.0, high=3.0)
    with pytest.raises(ValueError, match="no measurement"):
        Spread.of([])


def test_sides_alternate_and_every_other_round_goes_backwards() -> None:
    order: list[str] = []

    def turn(name: str, value: float) -> float:
        order.append(name)
        return value

    found = alternate({"a": lambda: turn("a", 1.0), "b": lambda: turn("b", 2.0)}, rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert ratios(found["a"], found["b"]) == [0.5] * 3


def test_of_two_calls_the_second_counts() -> None:
    pauses = iter([0.2, 0.0])
    assert second_of_two(lambda: time.sleep(next(pauses)))() < 0.1
    assert next(pauses, None) is None


# Every benchmark -----------------------------------------------------------------------------------------------------


def test_the_runner_runs_every_benchmark_there_is() -> None:
    """A module that ends in `command.run(...)` is one."""
    found = {
        path.stem for path in (PROJECT / "benchmarks").glob("*.py") if "    command.run(" in path.read_text()
    }
    assert found == set(runner.BENCHMARKS)


@pytest.mark.parametrize("name", runner.BENCHMARKS)
def test_a_benchmark_imports_quietly_and_says_how_it_is_run(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert capsys.readouterr().out == ""
    assert module.measure.__annotations__["return"] is Result
    assert f"uv run python -m benchmarks.{name}" in (module.__doc__ or "")


def test_the_program_that_weighs_another_imports_no_torch() -> None:
    """Linux counts a new process from the size of the one that started it."""
    program = "import sys, benchmarks.memory; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['numpy']"


# Recipe and arithmetic -----------------------------------------------------------------------------------------------


def test_the_schedule_holds_every_step_of_the_recipe(tiny: Config) -> None:
    task = random_task.random_task(tiny, count=400)
    schedule = recipe_time.our_schedule(task, tiny)
    assert schedule.total() == task.total_steps == 105
    assert {kind.pixels for kind in schedule} == {20, 24, 32}
    seconds = {kind: [1.0, 2.0, 9.0] for kind in schedule}
    assert recipe_time.training_seconds(seconds, schedule) == 210.0
    assert recipe_time.seconds_a_round(seconds, schedule) == [105.0, 210.0, 945.0]


def test_the_recipes_note_says_how_many_pictures_each_side_has(tiny: Config) -> None:
    text = recipe_time.pictures_of_both(49_000)
    assert text == (
        "an epoch of ours has 49,000 pictures (1,000 are held out to validate on), one of the record's 50,000"
    )
    task = random_task.random_task(tiny, count=1_500)
    assert len(task.validation.labels) == 1_000, "as many as the recipe holds out"


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_record_computes_in_the_precision_of_the_recipe(
    tiny: Config, precision: str, expected: torch.dtype
) -> None:
    """In emulated bf16 a step of it takes minutes: no processor without units for it would end the benchmark."""
    compute = plan_compute(tiny.train.model_copy(update={"precision": precision}), image_size=32)
    reference, logits = airbench94.Reference(compute), []
    reference.model.head.register_forward_hook(lambda *call: logits.append(call[-1]))
    before = reference.model.head.weight.clone()
    reference.step(torch.rand(4, 3, 32, 32), torch.arange(4), number=0)
    assert [one.dtype for one in logits] == [expected]
    assert not torch.equal(reference.model.head.weight, before)


def test_operations_of_a_convolution_are_those_of_its_definition() -> None:
    network = nn.Conv2d(3, 8, 3, padding=1, stride=2)
    with torch.no_grad(), arithmetic.ConvolutionLog() as log:
        network(torch.zeros(5, 3, 16, 16))
    (layer,) = log.layers
    met = 8 * 3 - 1  # of a side's 24 pairs of output and tap, the first output's first tap meets the padding
    assert layer.flops == 2 * 5 * 8 * 3 * met**2
    work = arithmetic.convolution_alone(layer, torch.float32, torch.channels_last)
    with FlopCounterMode(display=False, custom_mapping=arithmetic.COUNTED_HERE) as counter:
        work.action()
    assert counter.get_total_flops() == work.flops == arithmetic.CONVOLUTIONS_A_TURN * 3 * layer.flops
    assert arithmetic.Work(action=int, flops=6_000_000_000).rates([2.0, 3.0]) == [3.0, 2.0]


@pytest.mark.parametrize(
    ("convolution", "least", "most"), [("winograd", 0.25, 0.9), ("taps", 0.9999, 1.0001)]
)
def test_of_our_convolutions_the_products_that_are_left_are_counted(
    tiny: Config, convolution: str, least: float, most: float
) -> None:
    def operations(convolution: str) -> int:
        wide = tiny.model.model_copy(
            update={"speednet": tiny.model.speednet.model_copy(update={"widths": (8, 256, 256)})}
        )
        train = tiny.train.model_copy(update={"convolution": convolution, "micro_batch_size": 40})
        config = tiny.model_copy(update={"model": wide, "train": train})
        fit = random_task.new_fit(random_task.random_task(config, count=100), config)
        kind = recipe_time.Kind(side="ours", pixels=20, first_bias=True, pictures=40)
        return arithmetic.step_flops(fit, kind)

    assert least < operations(convolution) / operations("direct") < most, (
        "taps leaves out what is not counted"
    )


def test_operations_of_a_step_are_counted_for_the_whole_batch(tiny: Config) -> None:
    task = random_task.random_task(tiny, count=400)
    task = replace(task, compute=replace(task.compute, micro_batches_at_once=2))
    fit = random_task.new_fit(task, tiny)
    drawn = tiny.train.batch_size
    frozen, trained = (
        arithmetic.step_flops(fit, recipe_time.Kind("ours", 32, bias, drawn)) for bias in (False, True)
    )
    assert trained > frozen, "the gradient at the whitening layer is work"
    whole = random_task.random_task(
        tiny.model_copy(update={"train": tiny.train.model_copy(update={"micro_batch_size": 40})}), count=400
    )
    kind = recipe_time.Kind("ours", 32, False, drawn)
    assert arithmetic.step_flops(random_task.new_fit(whole, tiny), kind) == frozen
    forward = sum(layer.flops for layer in arithmetic.convolutions(fit))  # of both micro-batches at once
    assert 2 * forward < frozen < 3 * forward, (
        "no gradient at the pictures, the fixed filters and the first input"
    )


# The course's loop ---------------------------------------------------------------------------------------------------


def test_both_loops_train_the_same_network_in_turns() -> None:
    raw = random_raw(train_count=640, test_count=1)
    split = Split(images=raw.train_images, labels=raw.train_labels)
    config = recipe_on_cpu("tudui")
    ours, course = course_epoch.train_both(config, split, seed=1, steps=6, length=2)
    assert len(ours.seconds) == len(course.seconds) == len(ours.losses) == len(course.losses) == 3
    assert all(seconds > 0 for seconds in (*ours.seconds, *course.seconds))
    # Random pictures cannot be told apart: ln 10.
    assert [*ours.losses, *course.losses] == pytest.approx([2.303] * 6, abs=0.1)


def test_the_other_side_has_its_turn_between_two_steps() -> None:
    raw = random_raw(train_count=640, test_count=1)
    split = Split(images=raw.train_images, labels=raw.train_labels)
    config = recipe_on_cpu("tudui")
    task = course_epoch.course_task(config, split, steps=4, seed=1)
    at: list[int] = []
    turns = course_epoch.Turns(2, lambda: at.append(fit.state.step))
    fit = course_epoch.Fit.start(
        task, task.new_model(config.model, seed=1), checkpoints=turns, on_epoch=lambda _: at.append(-1)
    )
    turns.begin(fit)
    fit.run()
    assert at == [2, 4, -1]


def test_the_courses_network_is_the_recipes() -> None:
    raw = random_raw(train_count=64, test_count=1)
    split = Split(images=raw.train_images, labels=raw.train_labels)
    config = recipe_on_cpu("tudui")
    ours = course_epoch.course_task(config, split, steps=1, seed=1).new_model(config.model, seed=1)
    course = course_epoch.course_network()
    course.load_state_dict(ours.state_dict())
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.allclose(ours(pixels), course(pixels), atol=1e-5)
    assert config.train.batch_size == course_epoch.BATCH_SIZE
    assert config.train.optimizer.sgd.learning_rate == course_epoch.LEARNING_RATE


def curves(shifts: list[float], *, seeds: int = 5) -> list[tuple[course_epoch.Side, course_epoch.Side]]:
    """Falling losses of the course's side for each seed, and ours: as far from them as asked, and noise of 0.01."""
    random = np.random.default_rng(0)
    pairs = []
    for _ in range(seeds):
        course = np.linspace(2.3, 1.9, len(shifts)) + random.normal(0, 0.1)
        ours = course + shifts + random.normal(0, 0.01, len(shifts))
        pairs.append((course_epoch.Side(losses=ours.tolist()), course_epoch.Side(losses=course.tolist())))
    return pairs


@pytest.mark.parametrize(
    ("shifts", "expected", "most"),
    [
        ([0.0] * 7, "equal within noise", None),
        ([-0.3] * 4, "DIFFERENT beyond noise", None),
        ([0.0, 0.0, 0.3, 0.0], "DIFFERENT beyond noise", 3),
        # Their means are equal.
        ([0.30, 0.20, -0.20, -0.30], "DIFFERENT beyond noise", None),
    ],
    ids=["noise", "apart", "apart in one turn", "crossing"],
)
def test_loss_curves_are_compared_with_what_seeds_scatter(
    shifts: list[float], expected: str, most: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    said = course_epoch.compare_losses(curves(shifts))
    assert f"loss curves {expected} over 5 seeds" in said
    assert f"of {len(shifts)} turns number {most or ''}" in said and "differs most: " in said
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()]
    assert rows[2:] == [*map(str, range(1, len(shifts) + 1)), "all"]


def test_crossing_curves_have_equal_means_and_are_told_apart_by_their_turns() -> None:
    said = course_epoch.compare_losses(curves([0.30, 0.20, -0.20, -0.30]))
    (whole,) = (float(text) for text in re.findall(r"mean difference .*?\(p (\S+),", said))
    assert whole > loss_curves.CHANCE, "the means alone call them equal"
    assert "limit 0.0025" in said, "of four turns each has a quarter of the limit"


def test_noise_makes_no_curves_different_however_many_turns_there_are() -> None:
    random = np.random.default_rng(1)
    verdicts = []
    for _ in range(200):
        turns = [loss_curves.Difference.of(*random.normal(2, 0.1, (2, 5)).tolist()) for _ in range(30)]
        verdicts.append(loss_curves.verdict(turns[0], turns[1:], seeds=5))
    assert sum("DIFFERENT" in verdict for verdict in verdicts) <= 12, (
        "2 % of 200 are 4; by chance 12 or fewer"
    )


def test_a_curve_of_too_few_seeds_is_not_judged(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        course_epoch.compare_losses(curves([0.3, 0.3], seeds=2))
        == "2 seeds are too few to compare loss curves"
    )
    assert "1 seeds" in course_epoch.compare_losses(curves([0.3, 0.3], seeds=1))
    assert "nan" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 63.657), (2, 9.925), (3, 5.841), (4, 4.604), (5, 4.032), (7, 3.499), (30, 2.750)]
)
def test_chance_is_that_of_students_table(degrees: int, t: float) -> None:
    """Its 99 % column, for both sides."""
    assert loss_curves.chance_beyond(-t, 1.0, degrees=degrees) == pytest.approx(0.01, rel=1e-3)
    assert loss_curves.chance_beyond(0.0, 0.0, degrees=degrees) == 1
    assert loss_curves.chance_beyond(0.1, 0.0, degrees=degrees) == pytest.approx(0, abs=1e-9)


# Augmentation --------------------------------------------------------------------------------------------------------


VARIED = AugmentConfig(flip="random", translate_pixels=2, cutout_pixels=0, brightness=0.0, contrast=0.0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_give_every_picture_and_have_ended() -> None:
    seconds = augmentation.both_sides(VARIED, count=120, batch_size=50, rounds=2)
    assert {side: len(times) for side, times in seconds.items()} == {"cifarflow": 2, "torchvision": 2}
    assert multiprocessing.active_children() == []


def test_one_by_one_shifts_by_whole_pixels_and_mirrors() -> None:
    image = torch.arange(3 * 32 * 32).remainder(251).to(torch.uint8).view(1, 3, 32, 32)
    torch.manual_seed(0)
    varied = [augmentation.OneByOne(image, VARIED)[0] for _ in range(20)]
    assert all(picture.shape == (3, 32, 32) and picture.dtype == torch.uint8 for picture in varied)
    middle = image[0, :, 4:-4, 4:-4]
    windows = [
        picture[:, 2 + r : 26 + r, 2 + c : 26 + c] for picture in varied for r in range(5) for c in range(5)
    ]
    matches = sum(torch.equal(window, middle) or torch.equal(window.flip(2), middle) for window in windows)
    assert matches == len(varied)


# Overhead ------------------------------------------------------------------------------------------------------------


def test_costs_are_counted_as_often_as_the_schedule_has_them() -> None:
    costs = overhead_costs.Costs(
        step=Spread(median=0.001, low=0.0, high=0.002),
        bar=Spread(median=0.002, low=0.0, high=0.004),
        epoch=Spread(median=0.1, low=0.0, high=0.2),
        save=Spread(median=0.05, low=0.0, high=0.1),
        run=Spread(median=1.5, low=0.0, high=3.0),
    )
    counts = {"steps": 100, "epochs": 2.5, "seconds": 60.0, "save_interval": 30.0}
    # 0.1 of steps, 0.12 of drawing, 0.3 of three epochs, 0.15 of two checkpoints and the last, 1.5 of the run
    assert costs.ratio("median", **counts) == pytest.approx(1 + 2.17 / 60)
    assert costs.ratio("low", **counts) == 1
    assert costs.ratio("high", **counts) == pytest.approx(1 + 4.34 / 60)


def test_keeping_the_history_is_a_cost_of_a_run(tiny: Config, tmp_path: Path) -> None:
    fit = random_task.new_fit(random_task.random_task(tiny, count=100), tiny)
    quiet = tiny.tracking.model_copy(
        update={
            "mlflow": tiny.tracking.mlflow.model_copy(update={"enabled": False}),
            "tensorboard": tiny.tracking.tensorboard.model_copy(update={"enabled": False}),
        }
    )
    config = tiny.model_copy(update={"tracking": quiet})
    assert overhead_costs.run_cost(config, tmp_path, fit, name="run") > 0
    (kept,) = tmp_path.glob("**/artifacts/plots/history.csv")
    assert len(kept.read_text().splitlines()) == 1 + 11, "a head, and a row for each epoch of the recipe"
    (journal,) = tmp_path.glob("**/events.jsonl")
    assert journal.read_text().splitlines()[-1].endswith('"status": "FINISHED"}')


def test_the_note_says_what_the_store_takes_once() -> None:
    nothing = Spread(median=0.0, low=0.0, high=0.0)
    costs = overhead_costs.Costs(step=nothing, bar=nothing, epoch=nothing, save=nothing, run=nothing)
    found = overhead.Found(turns=[1.02, 1.01, 1.03], costs=costs, store_seconds=1.77)
    assert overhead.note_of(found).endswith(
        "setting up MLflow's store, once a checkout, is not counted: 1.77 s"
    )
    assert "1.02 (1.01 to 1.03)" in overhead.note_of(found)


def test_work_of_a_background_thread_is_a_cost() -> None:
    def busy() -> None:
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            pass

    started: list[threading.Thread] = []

    def call() -> None:
        started.append(threading.Thread(target=busy))
        started[0].start()

    assert overhead_costs.cost_of(call) >= 0.25
    assert not started[0].is_alive()


def test_a_terminal_gets_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead_costs, "BAR_SECONDS", 0.3)
    monkeypatch.setenv("TERM", "xterm-256color")
    shown = overhead_costs.Terminal()
    monkeypatch.setattr(overhead_costs, "Terminal", lambda: shown)
    calls, drawing = overhead_costs.step_costs(rounds=1)
    assert "loss" in shown.getvalue(), "a bar that is not drawn costs nothing"
    assert 0 < calls[0] < 0.01 and drawing[0] > 0


def test_both_sides_of_the_overhead_go_on_by_an_epoch_a_turn(tiny: Config) -> None:
    task = overhead.hard_task(tiny, steps=2)
    assert {task.pixels_at(step) for step in range(task.total_steps)} == {overhead.PIXELS}
    side = overhead.Side(fit=overhead.fit_for(task, tiny, NoCheckpoints()), stream=overhead_costs.Terminal())
    assert side.turn() > 0 and side.fit.state.step == 2
    assert side.turn() > 0 and [row["step"] for row in side.fit.state.history] == [2.0, 4.0]


# Programs in a checkout of their own ---------------------------------------------------------------------------------


def test_a_checkout_has_the_recipe_with_the_changes(tmp_path: Path) -> None:
    workspace = checkout.make_checkout(tmp_path / "a", recipe="cifar94", changes={"train.epochs": 0.25})
    config = load_config(workspace.params)
    assert (config.train.epochs, config.train.device) == (0.25, "cpu")
    assert (workspace.root / "stages" / "train.py").is_file()
    with pytest.raises(ConfigError, match="epoch"):
        checkout.make_checkout(tmp_path / "b", recipe="cifar94", changes={"train.epoch": 1})


def test_a_program_is_timed_and_weighed_and_its_failure_told(tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path, {})
    program = "import time; block = b'x' * (1500 << 20); time.sleep(0.2)"
    usage = checkout.run_program([sys.executable, "-c", program], workspace)
    assert usage.seconds >= 0.2 and 1500 << 20 <= usage.peak_bytes < 3000 << 20
    with pytest.raises(RuntimeError, match=r"ended with 3:\nalas"):
        checkout.run_program([sys.executable, "-c", "print('alas'); raise SystemExit(3)"], workspace)


def test_memory_is_weighed_over_every_size_of_pictures() -> None:
    config = recipe_on_cpu("cifar94")
    steps = memory.steps_that_see_every_size(config, each=2)
    task = random_task.random_task(config, count=2_000)
    short = replace(task, config=config.train.model_copy(update={"epochs": steps / 2}))
    assert short.total_steps == steps
    seen = [short.pixels_at(step) for step in range(steps)]
    assert all(seen.count(stage.pixels) >= 2 for stage in config.train.resolution) and seen.count(32) >= 2
    memory.require_above(10, [11, 12])
    with pytest.raises(RuntimeError, match="not above"):
        memory.require_above(11, [11, 12])


def test_training_does_not_count_as_a_stage_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def pretend(workspace: Workspace, stage: str) -> checkout.Usage:
        ran.append(stage)
        return checkout.Usage(seconds=100.0 if stage == "train" else 2.0, peak_bytes=0)

    monkeypatch.setattr(stages_time, "run_stage", pretend)
    assert sum(stages_time.one_round(recipe_on_cpu("cifar94")).values()) == 8.0
    assert ran == ["download", "prepare", "train", "evaluate", "export"]


def test_the_quick_form_of_the_stages_evaluates_fewer_views(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []

    def pretend(workspace: Workspace, stage: str) -> checkout.Usage:
        seen.append(load_config(workspace.params))
        return checkout.Usage(seconds=1.0, peak_bytes=0)

    monkeypatch.setattr(stages_time, "run_stage", pretend)
    config = recipe_on_cpu("cifar94")
    short = stages_time.shortened(config)
    for one in (config, short):
        seen.clear()
        stages_time.one_round(one)
        assert len(seen) == 5 and all(ran.evaluate == one.evaluate for ran in seen)
    whole, fewer = (sum(stages_time.passes_in(one).values()) for one in (config, short))
    assert (whole, fewer) == (8, 4)


@pytest.mark.parametrize(
    ("precision", "passes"),
    [("fp32", {torch.float32: 8}), ("bf16", {torch.float32: 3, torch.bfloat16: 5})],
)
def test_passes_of_evaluate_and_export_are_counted_by_their_precision(
    precision: str, passes: dict[torch.dtype, int]
) -> None:
    config = recipe_on_cpu("cifar94")
    evaluate = config.evaluate.model_copy(update={"views_precision": precision})
    assert stages_time.passes_in(config.model_copy(update={"evaluate": evaluate})) == passes


def test_a_turn_of_processes_that_fails_is_told() -> None:
    line = '{"pictures_a_second": 12.5, "threads": 1}'
    assert processes.pictures_a_second([sys.executable, "-c", f"print('hello'); print('{line}')"]) == 12.5
    with pytest.raises(RuntimeError, match="alas"):
        processes.pictures_a_second([sys.executable, "-c", "raise SystemExit('alas')"])
    with pytest.raises(RuntimeError, match="ended with 0"):
        processes.pictures_a_second([sys.executable, "-c", "pass"])


# The page ------------------------------------------------------------------------------------------------------------


def test_the_runner_takes_the_result_and_shows_a_failure() -> None:
    program = f"print('a table'); print('''{RESULT.to_json()}'''); print('a late warning')"
    good = runner.run([sys.executable, "-c", program], name="good")
    assert good.result == RESULT and good.output == "a table\na late warning\n"
    bad = runner.run(
        [sys.executable, "-c", f"print('''{RESULT.to_json()}'''); raise SystemExit('alas')"], name="bad"
    )
    assert bad.result is None and bad.output.endswith("alas\n")
    assert runner.run([sys.executable, "-c", "pass", "--json"], name="mute").result is None


def test_the_page_has_a_row_for_each_result_and_for_each_that_is_missing() -> None:
    runs = [
        report.Run(
            name="good", output="before\n| a | table |\n|---|---|\nafter\n", seconds=3.0, result=RESULT
        ),
        report.Run(name="missed", output="", seconds=3.0, result=replace(RESULT, value=0.7, note="")),
        report.Run(name="bad", output="first\n```\nlast | line\n", seconds=1.0, result=None),
    ]
    text = report.page(runs, facts={"processor": "a test's"}, quick=False)
    assert "* processor: a test's" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[1] == "| a side | another | <= 0.5 | 0.4 (0.3 to 0.6, 3 rounds) | yes |"
    assert rows[2].endswith("| **no** |")
    assert rows[3] == "| `bad` |  |  | not measured: last \\| line |  |"
    missing = [entry for entry in elsewhere.ROWS if elsewhere.kept(entry.name) is None]
    assert [entry.command in text for entry in missing] == [True] * len(missing)
    assert text.count("not measured yet") == len(missing)
    assert "* a side: of a test." in text
    assert "* before\n\n| a | table |\n|---|---|\n\n* after\n" in text, (
        "a table is one only with room around it"
    )
    assert "````text\nfirst\n```\nlast | line\n````" in text, "an output with a fence needs a longer one"
    assert "--quick" not in text
    quick = report.page(runs, facts={}, quick=True, left_out=["outage"])
    assert "--quick" in quick and "Left out: outage." in quick


def test_the_quick_page_is_of_speed_and_memory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def pretend(command: list[str], *, name: str) -> report.Run:
        ran.append(name)
        return report.Run(name=name, output="", seconds=1.0, result=RESULT)

    monkeypatch.setattr(runner, "run", pretend)
    for options, expected in (
        (["--quick"], [name for name in runner.BENCHMARKS if name != "outage"]),
        ([], [*runner.BENCHMARKS]),
    ):
        ran.clear()
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--page", str(tmp_path / "page.md"), *options])
        assert runner.main() == 0 and ran == expected
        assert ("Left out: outage." in (tmp_path / "page.md").read_text()) == bool(options)
    monkeypatch.setattr(
        sys, "argv", ["benchmarks", "--page", str(tmp_path / "no.md"), "--only", "outage", "--quick"]
    )
    ran.clear()
    assert runner.main() == 0 and ran == ["outage"] and not (tmp_path / "no.md").exists()
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "answer"),
    [
        (outage.SILENT, "timed out"),
        (outage.REFUSING, "refused"),
        (outage.FAILING, "500"),
    ],
)
def test_each_outage_of_a_server_is_the_one_that_it_is_called(
    tmp_path: Path, state: str, answer: str
) -> None:
    with outage.in_state(state, recipe_on_cpu("cifar94"), tmp_path) as config:
        address = f"{config.tracking.mlflow.uri}/health"
        with pytest.raises(OSError, match=answer):
            urllib.request.urlopen(address, timeout=0.5)


def test_a_figure_of_another_machine_is_kept_for_the_page(tmp_path: Path) -> None:
    entry = elsewhere.ROWS[0]
    assert elsewhere.kept(entry.name, folder=tmp_path) is None
    assert f"not measured yet: `{entry.command}`" in report.row_of_elsewhere(entry, None)
    found = replace(RESULT, note="a GPU of a test's")
    elsewhere.keep(entry.name, found, folder=tmp_path)
    one = elsewhere.kept(entry.name, folder=tmp_path)
    assert one is not None and one.result == found
    row = report.row_of_elsewhere(entry, one)
    assert "0.4 (0.3 to 0.6, 3 rounds); a GPU of a test's; 20" in row and row.endswith("| yes |")


def test_facts_name_machine_and_versions() -> None:
    facts = report.facts(date="2026-11-23", commit="abc")
    assert facts["memory"].endswith(" GiB") and float(facts["memory"].split()[0]) > 0
    assert f"torch {torch.__version__.split('+')[0]}" in facts["versions"]
    assert facts["processors used"].isdigit()


def test_operations_of_the_course_network_by_hand() -> None:
    """Each layer's products, twice for an addition each; backward twice that, but for the gradient at the pictures."""
    split = Split(images=np.zeros((64, 32, 32, 3), dtype=np.uint8), labels=np.zeros(64, dtype=np.int64))
    # Of a side's five pairs of tap and pixel for each output, six meet the padding.
    maps = ((32, 3, 32), (16, 32, 32), (8, 32, 64))
    convolutions = [(5 * side - 6) ** 2 * width_in * width_out for side, width_in, width_out in maps]
    forward = sum(convolutions) + 1024 * 64 + 64 * 10
    expected = 64 * 2 * (3 * forward - convolutions[0])
    assert course_epoch.step_flops(recipe_on_cpu("tudui"), split) == expected
