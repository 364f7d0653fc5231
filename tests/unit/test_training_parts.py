"""Schedules, losses, optimizers, batches, augmentation, progress: pieces of the loop, each against its definition."""

import io
import math
import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifarflow.compute.streams import one_ahead
from cifarflow.config.schema import LossConfig, OptimizerConfig, ScheduleConfig
from cifarflow.data.augment import GREY, Augmentation, all_windows, gather, take_windows
from cifarflow.data.batches import BatchPlan, even_slices
from cifarflow.data.randomness import generator
from cifarflow.training.difficulty import Difficulty
from cifarflow.training.losses import LOSSES
from cifarflow.training.muon import (
    QUINTIC_COEFFICIENTS,
    Muon,
    _moved_as_one,
    _moved_by_size,
    orthogonalise,
)
from cifarflow.training.optimizers import OPTIMIZERS, schedule_groups
from cifarflow.training.progress import training_progress
from cifarflow.training.schedules import SCHEDULES, learning_rate_factor
from cifarflow.training.watch import Seen


def allowed(section: type, field: str = "name") -> list[str]:
    return sorted(section.model_fields[field].annotation.__args__)  # pyright: ignore


def test_params_yaml_can_name_exactly_what_is_registered() -> None:
    assert allowed(OptimizerConfig) == OPTIMIZERS.names()
    assert allowed(ScheduleConfig) == SCHEDULES.names()
    assert allowed(LossConfig) == LOSSES.names()


# schedules


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_a_schedule_rises_to_its_peak_and_never_leaves_its_range(name: str) -> None:
    values = [
        learning_rate_factor(t / 100, name=name, warmup_fraction=0.1, final_fraction=0.2) for t in range(101)
    ]
    assert values[:11] == pytest.approx([t / 10 for t in range(11)])
    assert all(0.2 <= value <= 1 for value in values[10:])
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[-1] == pytest.approx(1.0 if name == "constant" else 0.2)


def test_cosine_is_half_way_at_half_time() -> None:
    assert learning_rate_factor(0.5, name="cosine", warmup_fraction=0, final_fraction=0) == pytest.approx(0.5)


# losses


def test_losses_against_torch() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    one_hot = F.one_hot(labels, 4).float()
    expected = {
        "cross_entropy": F.cross_entropy(logits, labels, label_smoothing=0.1),
        "mse": F.mse_loss(logits, one_hot * 0.9 + 0.1 / 4),
        "l1": F.l1_loss(logits, one_hot * 0.9 + 0.1 / 4),
    }
    for name, value in expected.items():
        torch.testing.assert_close(LOSSES.get(name)(logits, labels, 0.1).mean(), value)


# optimizers


def test_muon_update_is_near_orthogonal_and_filters_keep_unit_norm() -> None:
    torch.manual_seed(0)
    filters = nn.Parameter(torch.randn(16, 8, 3, 3))
    optimizer = Muon([filters], lr=0.1, momentum=0.5)
    filters.grad = torch.randn_like(filters) * 1e-4
    before = filters.detach().clone()
    optimizer.step()
    start = before * (16**0.5 / before.norm())
    singular = torch.linalg.svdvals((start - filters.detach()).flatten(1) / 0.1)
    assert 0.3 < singular.min() < singular.max() < 1.6


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12)])
def test_orthogonalise_is_the_iteration_of_its_source_written_out(shape: tuple[int, int]) -> None:
    a, b, c = QUINTIC_COEFFICIENTS
    matrix = torch.randn(shape, generator=generator("matrix", 0), dtype=torch.float64)
    x = matrix / matrix.norm()
    for _ in range(3):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    torch.testing.assert_close(orthogonalise([matrix], steps=3)[0], x, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        orthogonalise([matrix], steps=0)[0], matrix / matrix.norm(), atol=1e-6, rtol=1e-5
    )


def test_orthogonalise_in_bf16_is_the_same_direction_within_its_rounding() -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(rows, columns) for rows, columns in ((48, 216), (128, 432), (256, 1152))]
    exact = orthogonalise(matrices, steps=3)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = orthogonalise(matrices, steps=3)
    for one, other in zip(rounded, exact, strict=True):
        assert one.dtype == torch.float32 and not torch.equal(one, other)
        assert (one - other).norm() < 0.05 * other.norm()
        assert torch.linalg.svdvals(one).max() < 1.6


def test_all_matrices_as_one_move_as_each_by_itself() -> None:
    """The form for a GPU, in which all are padded to one size: also here, where nothing is rounded to TF32."""
    torch.manual_seed(0)
    wide = [torch.randn(rows, columns) for rows, columns in ((8, 20), (16, 72), (16, 144), (12, 12))]
    wide = [one / one.norm() for one in wide]
    for one, other in zip(_moved_as_one(wide, steps=3), _moved_by_size(wide, steps=3), strict=True):
        torch.testing.assert_close(one, other)


def test_orthogonalise_keeps_singular_vectors() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(12, 40)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    diagonal = u.T @ orthogonalise([matrix], steps=5)[0] @ v.T
    torch.testing.assert_close(diagonal, torch.diag(diagonal.diag()), atol=1e-3, rtol=0)
    assert diagonal.diag().min() > 0.5


def test_muon_state_survives_a_round_trip() -> None:
    def trained(resume_after: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        filters = nn.Parameter(torch.randn(4, 3, 3, 3))
        optimizer = Muon([filters], lr=0.1, momentum=0.6)
        for step in range(4):
            if step == resume_after:
                saved = optimizer.state_dict()
                optimizer = Muon([filters], lr=0.1, momentum=0.6)
                optimizer.load_state_dict(saved)
            filters.grad = torch.randn(filters.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        return filters.detach()

    assert torch.equal(trained(None), trained(2))


def test_muon_refuses_what_is_no_filter() -> None:
    with pytest.raises(ValueError, match=r"4-D convolution filters, got shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1, momentum=0.6)


def test_a_group_is_frozen_when_its_time_is_over() -> None:
    early, late = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = [{"params": [early], "peak_lr": 2.0, "trained_until": 0.5}, {"params": [late], "peak_lr": 4.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule_groups([optimizer], progress=0.25, factor=lambda progress: 1 - progress)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 3.0]
    schedule_groups([optimizer], progress=0.5, factor=lambda progress: 1 - progress)
    assert (early.requires_grad, late.requires_grad) == (False, True)


# batches


@pytest.mark.parametrize(("count", "batch_size"), [(1000, 64), (7, 10), (2001, 1000)])
def test_an_epoch_shows_every_picture_once_in_even_batches(count: int, batch_size: int) -> None:
    plan = BatchPlan(count=count, batch_size=batch_size, seed=1)
    batches = plan.batches(epoch=3)
    assert len(batches) == plan.steps_per_epoch == math.ceil(count / batch_size)
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    plan = BatchPlan(count=100, batch_size=10, seed=1)
    torch.manual_seed(5)
    first = torch.cat(plan.batches(2))
    torch.manual_seed(6)
    assert torch.equal(first, torch.cat(plan.batches(2)))
    assert not torch.equal(first, torch.cat(plan.batches(3)))
    assert not torch.equal(first, torch.cat(BatchPlan(count=100, batch_size=10, seed=2).batches(2)))


def test_even_slices_cover_a_batch() -> None:
    parts = even_slices(10, 4)
    assert [list(range(10))[part] for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_generators_of_different_purposes_differ() -> None:
    draws = {
        tuple(torch.randint(100, (5,), generator=generator(p, *c)).tolist())
        for p, c in [("a", (1, 2)), ("a", (2, 1)), ("b", (1, 2)), ("a", (12,))]
    }
    assert len(draws) == 4


# augmentation


def pictures(count: int = 6, size: int = 8) -> torch.Tensor:
    return torch.randint(
        0, 255, (count, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def augmented(images: torch.Tensor, *, epoch: int = 0, step: int = 0, **options: object) -> torch.Tensor:
    settings = {
        **{"flip": "none", "translate_pixels": 0, "cutout_pixels": 0, "brightness": 0.0, "contrast": 0.0},
        **{"seed": 1, **options},
    }
    varied = Augmentation(images=images, **settings)  # pyright: ignore[reportArgumentType]
    return varied(torch.arange(len(images)), epoch=epoch, step=step)


def test_no_augmentation_changes_nothing() -> None:
    assert torch.equal(augmented(pictures()), pictures())


def test_a_shift_is_a_window_of_the_mirrored_picture() -> None:
    images = pictures(40)
    padded = F.pad(images.permute(0, 3, 1, 2).float(), (2,) * 4, mode="reflect").permute(0, 2, 3, 1).byte()
    found = set()
    for picture, frame in zip(augmented(images, translate_pixels=2), padded, strict=True):
        windows = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(picture, frame[y : y + 8, x : x + 8])
        ]
        assert len(windows) == 1
        found.update(windows)
    assert len(found) > 10


def test_alternating_flip_shows_both_sides_in_two_epochs() -> None:
    images = pictures()
    even, odd = augmented(images, flip="alternating", epoch=0), augmented(images, flip="alternating", epoch=1)
    assert torch.equal(even.flip(2), odd)
    mirrored = [not torch.equal(a, b) for a, b in zip(even, images, strict=True)]
    assert any(mirrored)
    assert not all(mirrored)
    assert torch.equal(augmented(images, flip="alternating", epoch=2, step=9), even)


@pytest.mark.parametrize("reach", [0, 1, 3, 9, 20])
def test_processor_and_gpu_move_pixels_in_the_same_way(reach: int) -> None:
    images, indices = pictures(40), torch.randperm(40)[:25]
    rows, columns = torch.randint(-reach, reach + 1, (2, 25))
    mirrored = torch.arange(25) % 3 == 0
    by_copies = take_windows(all_windows(images.numpy(), reach), indices, rows, columns, mirrored)
    assert torch.equal(by_copies, gather(images, indices, rows, columns, mirrored))
    assert not torch.equal(by_copies, images[indices])


def test_light_changes_all_values_of_a_picture_alike_and_within_bounds() -> None:
    images = torch.tensor([0, 64, GREY, 192, 255], dtype=torch.uint8).view(1, 5, 1, 1).repeat(200, 1, 5, 3)
    brighter = augmented(images, brightness=0.1)
    change = brighter[:, 2].int() - GREY
    assert 20 <= change.max() <= 26
    assert -26 <= change.min() <= -20
    assert (brighter == brighter[:, :, :1, :1]).all(), "one change a picture"
    stretched = augmented(images, contrast=0.5)
    assert (stretched[:, 2] == GREY).all()
    distance = stretched[:, 3].int() - GREY
    assert 28 <= distance.min() < distance.max() <= 100
    assert stretched[:, 4].max() == 255


def test_random_flip_is_drawn_anew_each_step() -> None:
    images = pictures(32)
    assert not torch.equal(augmented(images, flip="random"), augmented(images, flip="random", step=1))


def test_cutout_greys_at_most_one_square_a_picture() -> None:
    images = torch.zeros(50, 8, 8, 3, dtype=torch.uint8)
    grey = (augmented(images, cutout_pixels=3) == GREY).all(3)
    counts = grey.flatten(1).sum(1)
    assert counts.max() == 9
    assert counts.min() >= 4  # a square centred in a corner
    assert torch.equal(augmented(images, cutout_pixels=3, step=4), augmented(images, cutout_pixels=3, step=4))


def test_the_hardest_pictures_are_those_of_the_largest_last_loss() -> None:
    difficulty = Difficulty.unknown(6, torch.device("cpu"))
    drawn = torch.tensor([5, 1, 3, 0])
    assert difficulty.hardest(drawn, 0.5).tolist() == [5, 1], "nothing is known: the first ones"
    difficulty.learn(torch.tensor([5, 1]), torch.tensor([0.5, 2.0]), torch.tensor([True, False]))
    assert difficulty.hardest(drawn, 0.5).tolist() == [3, 0], "never seen comes before seen"
    difficulty.learn(torch.tensor([3, 0]), torch.tensor([1.0, 3.0]), torch.tensor([True, False]))
    assert difficulty.hardest(drawn, 0.5).tolist() == [1, 0], "in the order in which they were drawn"
    assert difficulty.hardest(drawn, 1.0) is drawn
    assert len(difficulty.hardest(drawn, 0.01)) == 1
    assert difficulty.means() == (pytest.approx(6.5 / 4), 0.5), "the two that were never seen do not count"


def test_a_picture_that_is_left_out_gets_its_turn_when_the_others_are_learnt() -> None:
    difficulty = Difficulty.unknown(4, torch.device("cpu"))
    everything = torch.arange(4)
    difficulty.learn(everything, torch.tensor([1.0, 0.9, 0.8, 0.7]), torch.ones(4, dtype=torch.bool))
    taken = []
    for _ in range(4):
        chosen = difficulty.hardest(everything, 0.5)
        difficulty.learn(chosen, difficulty.losses[chosen] / 2, difficulty.right[chosen])
        taken.append(chosen.tolist())
    assert taken == [[0, 1], [2, 3], [0, 1], [2, 3]]


# progress


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_bar_with_loss_accuracy_speed_and_time_left() -> None:
    import pty

    code = """
import time
from cifarflow.training.progress import training_progress
from cifarflow.training.watch import Seen
with training_progress(10) as progress:
    for done in range(5):
        progress.step(done, Seen(loss=0.7, accuracy=0.25) if done else None, images_per_second=12_345)
        time.sleep(0.1)
    progress.say("epoch line")
"""
    ours, theirs = pty.openpty()
    environ = os.environ | {"TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environ, check=True)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "loss 0.700  accuracy 0.250  12,345 images/s" in shown
    assert re.search(r"images/s \S*0:00:0\d", shown), "the time left"
    assert "epoch line" in shown


def test_elsewhere_an_epoch_is_a_line_and_a_step_is_none() -> None:
    stream = io.StringIO()
    with training_progress(10, stream=stream) as progress:
        progress.step(5, Seen(loss=0.7, accuracy=0.25), images_per_second=12_345)
        progress.say("epoch line")
    assert stream.getvalue() == "epoch line\n"


def test_on_a_processor_a_step_finds_what_the_step_before_it_wrote() -> None:
    """On a GPU pictures are made one step ahead; here that would gain nothing."""
    written = [0]
    for number, (found,) in enumerate(
        one_ahead(torch.device("cpu"), lambda _: (torch.tensor(written[-1]),), range(1, 4))
    ):
        assert int(found) == number
        written.append(number + 1)
    assert written == [0, 1, 2, 3]
