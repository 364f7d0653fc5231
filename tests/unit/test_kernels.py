"""Fused kernels: batch norm with GELU against float64, GELU alone, and how they are compiled and kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarflow.compute.activation import batch_norm_gelu
from cifarflow.compute.kernels import batch_norm_gelu as fused
from cifarflow.compute.kernels.normalising import BLOCK, PART
from cifarflow.compute.operations import OwnOperations
from cifarflow.compute.processor import numba_has_openmp
from tests.support.networks import network

pytestmark = pytest.mark.skipif(not numba_has_openmp(), reason="needs the system's OpenMP (libgomp)")
LIBRARY = "direct"  # convolutions
LAYOUT = torch.channels_last
SIZES = (5, 4, 5)
ERRORS = {torch.float32: 2e-6, torch.bfloat16: 4e-3}
"""Of a result's norm: half of bfloat16's last place is 2e-3 of a number, and gradients are rounded twice."""


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what our batch norm with GELU was given, in order."""
    shapes: list[torch.Size] = []
    apply = fused._Activation.apply  # pyright: ignore[reportPrivateUsage]

    def noted(inputs: Tensor, *others: Any) -> Any:
        shapes.append(inputs.shape)
        return apply(inputs, *others)

    monkeypatch.setattr(fused._Activation, "apply", noted)  # pyright: ignore[reportPrivateUsage]
    return shapes


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, mean: float = 1.0) -> Tensor:
    torch.manual_seed(seed)
    return (3 * torch.randn(shape) + mean).to(dtype).contiguous(memory_format=LAYOUT).requires_grad_()


def layer_of(channels: int, *, momentum: float = 0.3) -> nn.BatchNorm2d:
    torch.manual_seed(1)
    layer = nn.BatchNorm2d(channels, momentum=momentum)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    layer.weight.requires_grad_(False)
    return layer


def exact(
    images: Tensor, layer: nn.BatchNorm2d, shortcut: Tensor | None, *, sizes: tuple[int, ...]
) -> Tensor:
    """The same in float64, by the library and one micro-batch after the other."""
    parts = torch.cat([layer(part) for part in images.split(sizes)])
    return F.gelu(parts if shortcut is None else parts + shortcut)


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize(
    ("channels", "side"), [(1, 5), (7, 1), (12, 9), (48, 7), (BLOCK + 8, 2), (16, PART // 64)]
)
def test_results_are_those_of_exact_arithmetic(
    taken: list[torch.Size], channels: int, side: int, with_shortcut: bool, dtype: torch.dtype
) -> None:
    images = maps(sum(SIZES), channels, side, 3, dtype=dtype)
    shortcut = maps(*images.shape, seed=2, dtype=dtype) if with_shortcut else None
    layer = layer_of(channels)
    with OwnOperations(LIBRARY, fused=True, sizes=SIZES):
        found = batch_norm_gelu(images, layer, shortcut)
    assert taken == [images.shape]
    assert found.dtype == dtype and found.is_contiguous(memory_format=LAYOUT)

    reference = layer_of(channels).double()
    images_64 = images.detach().double().requires_grad_()
    shortcut_64 = None if shortcut is None else shortcut.detach().double().requires_grad_()
    expected = exact(images_64, reference, shortcut_64, sizes=SIZES)
    assert error(found, expected) < ERRORS[dtype]
    assert layer.num_batches_tracked == 1
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(layer.get_buffer(name), reference.get_buffer(name).float())

    given = maps(*found.shape, seed=3, dtype=dtype).detach()
    found.backward(given)
    expected.backward(given.double())
    pairs = [(images, images_64), (layer.bias, reference.bias)]
    pairs += [] if shortcut is None or shortcut_64 is None else [(shortcut, shortcut_64)]
    for one, other in pairs:
        assert one.grad is not None and other.grad is not None
        assert one.grad.dtype == one.dtype
        assert error(one.grad, other.grad) < 2 * ERRORS[dtype]


def test_a_gradient_in_another_layout_is_taken_too() -> None:
    images, layer = maps(6, 12, 4, 4), layer_of(12)
    with OwnOperations(LIBRARY, fused=True):
        found = batch_norm_gelu(images, layer)
    given = torch.randn(found.shape)
    (one,) = torch.autograd.grad(found, images, given, retain_graph=True)
    (other,) = torch.autograd.grad(found, images, given.contiguous(memory_format=LAYOUT))
    assert torch.equal(one, other)


def test_a_mean_far_from_zero_takes_no_digits_from_the_variance() -> None:
    images, layer = maps(8, 12, 6, 6, mean=3000.0), layer_of(12)
    with OwnOperations(LIBRARY, fused=True):
        found = batch_norm_gelu(images, layer)
    expected = exact(images.detach().double(), layer_of(12).double(), None, sizes=(8,))
    assert error(found, expected) < 1e-4  # what float32 keeps of 3000 +- 3


def test_the_number_of_threads_changes_no_bit() -> None:
    threads = torch.get_num_threads()
    results: list[list[Tensor]] = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            images, layer = maps(9, 48, 30, 30, dtype=torch.bfloat16), layer_of(48)
            with OwnOperations(LIBRARY, fused=True):
                outputs = batch_norm_gelu(images, layer, maps(*images.shape, seed=2, dtype=images.dtype))
            outputs.sum().backward()
            assert images.grad is not None and layer.bias.grad is not None and layer.running_var is not None
            results.append([outputs.detach(), images.grad, layer.bias.grad, layer.running_var])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("count", [sum(SIZES) + 1, sum(SIZES) - 1])
def test_another_number_of_pictures_is_refused(count: int) -> None:
    with (
        OwnOperations(LIBRARY, fused=True, sizes=SIZES),
        pytest.raises(RuntimeError, match=r"do not split into micro-batches of \[5, 4, 5\]"),
    ):
        batch_norm_gelu(maps(count, 6, 4, 4), layer_of(6))


def test_what_it_is_not_for_is_the_librarys_of_each_micro_batch(taken: list[torch.Size]) -> None:
    def trained(layer: nn.BatchNorm2d) -> nn.BatchNorm2d:
        layer.weight.requires_grad_(True)
        return layer

    images = maps(sum(SIZES), 6, 4, 4)
    cases = [
        (images, trained(layer_of(6)), trained(layer_of(6))),
        (images.detach().contiguous().requires_grad_(), layer_of(6), layer_of(6)),
    ]
    for inputs, layer, other in cases:
        with OwnOperations(LIBRARY, sizes=SIZES, fused=True):
            found = batch_norm_gelu(inputs, layer)
        torch.testing.assert_close(found, exact(inputs, other, None, sizes=SIZES))
        assert layer.num_batches_tracked == 1
    with OwnOperations(LIBRARY, sizes=SIZES, fused=True):
        evaluated = batch_norm_gelu(images, layer_of(6).eval())
        with torch.no_grad():
            untracked = batch_norm_gelu(images, layer_of(6))
    torch.testing.assert_close(evaluated, F.gelu(layer_of(6).eval()(images)))
    assert torch.equal(untracked, F.gelu(layer_of(6)(images)))
    assert taken == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_is_that_of_exact_arithmetic(dtype: torch.dtype) -> None:
    values = torch.cat(
        (torch.linspace(-12, 12, 4001), torch.tensor([-1e30, -88.0, -0.0, 0.0, 1e-40, 300.0, 1e30]))
    )
    images = values.to(dtype).view(1, 1, 8, -1).contiguous(memory_format=LAYOUT).requires_grad_()
    given = torch.full_like(images, 1.5)
    exact_images = images.detach().double().requires_grad_()
    expected = F.gelu(exact_images)
    expected.backward(given.double())
    with OwnOperations(LIBRARY, fused=True):
        found = F.gelu(images)
    found.backward(given)
    assert images.grad is not None and exact_images.grad is not None
    relative = 4e-3 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(found.double(), expected, rtol=relative, atol=5e-7)
    torch.testing.assert_close(images.grad.double(), exact_images.grad, rtol=relative, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_stays_visible(bad: float) -> None:
    """A training that diverges is to end in a loss that says so."""
    images = maps(4, 6, 4, 4, dtype=torch.bfloat16)
    with torch.no_grad():
        images[2, 3, 1, 1] = bad
    with OwnOperations(LIBRARY, fused=True):
        normalised, plain = batch_norm_gelu(images, layer_of(6)), F.gelu(images)
    assert normalised[:, 3].isnan().all() and normalised[:, :3].isfinite().all()
    assert not plain[2, 3, 1, 1].isfinite()


def test_a_network_learns_with_them_as_without(taken: list[torch.Size]) -> None:
    torch.manual_seed(1)
    model = network("speednet", widths=(8, 16, 16), depth=3).train().to(memory_format=LAYOUT)  # pyright: ignore[reportCallIssue]
    images, labels = torch.randn(sum(SIZES), 3, 32, 32), torch.randint(0, 10, (sum(SIZES),))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    gradients: list[tuple[Tensor, ...]] = []
    for are_fused in (False, True):
        with OwnOperations(LIBRARY, fused=are_fused, sizes=SIZES):
            loss = F.cross_entropy(model(images.contiguous(memory_format=LAYOUT)), labels)
        gradients.append(torch.autograd.grad(loss, trained))
        assert len(taken) == 9 * are_fused
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_keeps_its_number_of_threads(project: Path, threads: int) -> None:
    """With more, two processes on two processors took five times the time."""
    program = f"import torch; torch.set_num_threads({threads})\n{PROGRAM}print(torch.get_num_threads())"
    variables = {**os.environ, "PYTHONPATH": str(project / "src")}
    run = subprocess.run(
        [sys.executable, "-c", program], env=variables, check=True, capture_output=True, text=True
    )
    assert run.stdout.split() == ["2.996", str(threads)]


PROGRAM = """
import torch
from cifarflow.compute.kernels import gelu
found = gelu.gelu(torch.full((1, 1, 2, 2), 3.0).contiguous(memory_format=torch.channels_last))
print(round(found.flatten()[0].item(), 3))
"""


def gelu_of_3(source: Path, **environment: str) -> float:
    """By a new process, from the code below that folder."""
    variables = {**os.environ, "PYTHONPATH": str(source), **environment}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=variables, check=True, capture_output=True, text=True
    )
    return float(run.stdout)


def test_compiled_code_is_kept_until_the_code_that_it_was_made_of_changes(
    project: Path, tmp_path: Path
) -> None:
    source = tmp_path / "src"
    shutil.copytree(project / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    kept = source / "cifarflow" / "compute" / "kernels" / "__pycache__"
    assert gelu_of_3(source) == 2.996
    first = {path.name: path.stat().st_mtime_ns for path in kept.glob("gelu.*.nbc")}
    assert first
    assert gelu_of_3(source) == 2.996
    assert {path.name: path.stat().st_mtime_ns for path in kept.glob("gelu.*.nbc")} == first
    numbers = source / "cifarflow" / "compute" / "kernels" / "numbers.py"
    numbers.write_text(
        numbers.read_text().replace("tail = HALF", "tail = ONE")
    )  # another file than gelu's own
    assert gelu_of_3(source) == 2.992


def test_where_no_folder_can_be_written_it_is_compiled_all_the_same(project: Path, tmp_path: Path) -> None:
    source = tmp_path / "src"
    shutil.copytree(project / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    blocked = source / "cifarflow" / "compute" / "kernels" / "__pycache__"
    blocked.write_text("a file in the folder's place")
    home = tmp_path / "home"
    home.write_text("another one")
    nowhere = {"HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    assert gelu_of_3(source, **nowhere) == 2.996
