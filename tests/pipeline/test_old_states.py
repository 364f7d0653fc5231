"""The real train stage, killed after a checkpoint: changed in any of what decides its weights it begins anew."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.support.pipeline import Checkout
from tests.support.trainings import make_short_steps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Prepared, and trained until a kill: a checkpoint after each step, and more epochs than anybody waits for."""
    checkout = make_short_steps(
        tmp_path_factory.mktemp("states") / "checkout",
        train__epochs="500",
        checkpoint__interval_seconds="0.0001",
        tracking__tensorboard__enabled="false",
        tracking__mlflow__enabled="false",
    )
    prepare(checkout)
    (checkout.root / "models").mkdir()
    assert not goes_on(checkout)
    return checkout


def prepare(checkout: Checkout) -> None:
    for stage in ("download", "prepare"):
        checkout.run("python", f"stages/{stage}.py")


def goes_on(checkout: Checkout) -> bool:
    """Whether a training goes on from a checkpoint, or trains its first epoch; it is killed when that is known."""
    with subprocess.Popen(
        [sys.executable, "stages/train.py"],
        cwd=checkout.root,
        env=checkout.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        signs = (line for line in process.stdout if line.startswith(("going on from step", "epoch 1/")))
        sign = next(signs, None)
        process.kill()
        assert sign is not None, process.stderr.read()
    return sign.startswith("going on")


@contextlib.contextmanager
def another_param(checkout: Checkout) -> Iterator[None]:
    checkout.set_params(train__loss__label_smoothing="0.1")
    yield
    checkout.set_params(train__loss__label_smoothing="0.0")


@contextlib.contextmanager
def other_data(checkout: Checkout) -> Iterator[None]:
    checkout.set_params(data__shapes__seed="1")
    prepare(checkout)
    yield
    checkout.set_params(data__shapes__seed="0")
    prepare(checkout)


@contextlib.contextmanager
def another_line_of_code(checkout: Checkout) -> Iterator[None]:
    path = checkout.root / "src/cifarflow/training/fit.py"
    code = path.read_text(encoding="utf-8")
    path.write_text(code + "# another line\n", encoding="utf-8")
    yield
    path.write_text(code, encoding="utf-8")


@pytest.mark.parametrize("change", [another_param, other_data, another_line_of_code])
def test_a_changed_training_begins_anew_and_the_old_one_goes_on_after_the_change_is_undone(
    checkout: Checkout, change: Callable[[Checkout], AbstractContextManager[None]]
) -> None:
    with change(checkout):
        assert not goes_on(checkout)
    assert goes_on(checkout)
