"""What `auto` is on which machine."""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarflow.compute import choices, processor
from cifarflow.compute.plan import ComputePlan, plan_compute
from cifarflow.compute.processes import Processes
from cifarflow.errors import ConfigError
from tests.support.small import small_config


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """What a plan sets for the whole process is taken back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def plan(processes: Processes | None = None, *, image_size: int = 32, **changes: Any) -> ComputePlan:
    config = small_config(**{f"train__{name}": value for name, value in {"device": "cpu", **changes}.items()})
    return plan_compute(config.train, image_size=image_size, processes=processes)


def test_what_is_asked_for_is_taken() -> None:
    asked = plan(
        precision="bf16",
        memory_format="contiguous",
        convolution="direct",
        fused_kernels=False,
        micro_batch_size=7,
        micro_batches_at_once=2,
        threads=3,
        compile=False,
        deterministic=True,
    )
    assert asked.describe() == {
        "device": "cpu",
        "precision": "bf16",
        "memory_format": "contiguous",
        "convolution": "direct",
        "fused_kernels": "false",
        "micro_batch_size": "7",
        "micro_batches_at_once": "2",
        "compile": "false",
    }
    assert len(asked.reasons) == 10 and all("as asked" in reason for reason in asked.reasons)
    with asked.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    asked.take_effect()
    assert torch.get_num_threads() == 3
    assert torch.are_deterministic_algorithms_enabled()
    plan().take_effect()
    assert not torch.backends.cudnn.allow_tf32, "in fp32, convolutions are in fp32 on a GPU too"
    assert not torch.are_deterministic_algorithms_enabled()


def test_convolutions_are_chosen_by_trial_where_code_is_compiled_and_may_differ() -> None:
    for compiles, deterministic in ((True, False), (True, True), (False, False)):
        replace(plan(), compile=compiles, deterministic=deterministic).take_effect()
        assert torch.backends.cudnn.benchmark == (compiles and not deterministic)
    plan().take_effect()


@pytest.mark.parametrize(
    ("image_size", "batch_size", "size"), [(32, 1000, 128), (64, 1000, 32), (512, 1000, 2), (32, 64, 64)]
)
def test_a_micro_batch_fits_the_cache(image_size: int, batch_size: int, size: int) -> None:
    chosen = plan(image_size=image_size, batch_size=batch_size, micro_batch_size="auto")
    assert chosen.micro_batch_size == size
    assert any(reason.startswith(f"micro-batches of {size}, ") for reason in chosen.reasons)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"convolution": "winograd"}, 6),
        ({"convolution": "taps"}, 6),
        ({"convolution": "direct"}, 1),
        ({"convolution": "direct", "micro_batches_at_once": 3}, 3),
    ],
)
def test_micro_batches_go_together_where_convolutions_gain(changes: dict[str, Any], count: int) -> None:
    chosen = plan(**changes)
    assert chosen.micro_batches_at_once == count
    assert len([reason for reason in chosen.reasons if "at once:" in reason]) == 1


@pytest.mark.parametrize(
    ("device", "compiles", "where"), [("cuda", False, "on cuda"), ("cpu", True, "compiled")]
)
def test_elsewhere_one_goes_at_a_time(device: str, compiles: bool, where: str) -> None:
    choose = partial(
        choices.choose_at_once, device=torch.device(device), compiles=compiles, convolution="direct"
    )
    for asked in ("auto", 1):
        assert choose(asked)[0] == 1
    with pytest.raises(ConfigError, match=rf"micro_batches_at_once is 2, but only one .*{where}.*auto or 1"):
        choose(2)


@pytest.mark.parametrize(
    ("granted", "processors"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)]
)
def test_threads_are_those_that_a_container_grants(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, granted: str, processors: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(granted)
    quota = processor._quota
    monkeypatch.setattr(processor, "_quota", lambda: quota(tmp_path / "cpu.max"))
    assert processor.usable_processors() == processors


def test_processes_of_one_machine_share_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "usable_processors", lambda: 8)
    torch.set_num_threads(1)  # as torchrun does
    assert plan(Processes(rank=1, count=4, local_count=4), threads="auto").threads == 2
    alone = plan(threads="auto")
    assert alone.threads == 1, "OMP_NUM_THREADS is a wish of the user's"
    assert any("OMP_NUM_THREADS" in reason for reason in alone.reasons)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(choices.shutil, "which", lambda name: None)
    assert not plan(compile="auto").compile
    with pytest.raises(ConfigError, match=r"train\.compile is true.*Install one, or use auto"):
        plan(compile=True)


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "fp32"), ({}, "fp32")],
)
def test_the_processors_flags_decide_the_precision(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(processor, "capabilities", lambda: capabilities)
    chosen = plan(precision="auto")
    assert chosen.precision == precision
    assert any(reason.startswith(precision) for reason in chosen.reasons)


@pytest.mark.parametrize(
    ("capabilities", "changes", "chosen", "reason"),
    [
        ({"avx2": True}, {}, "winograd", "where they pay"),
        ({"avx2": True}, {"convolution": "direct"}, "direct", "as asked"),
        ({"avx2": True}, {"precision": "bf16"}, "taps", "where they pay"),
        ({"avx2": True}, {"memory_format": "contiguous"}, "direct", "in the contiguous memory format"),
        ({"avx2": True}, {"precision": "bf16", "memory_format": "contiguous"}, "direct", "in the contiguous"),
        ({"avx2": True, "avx512_bf16": True}, {}, "pairs", "loops of our own"),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": True}, {}, "taps", "where they pay"),
        ({"avx512_bf16": True}, {"convolution": "pairs"}, "pairs", "as asked"),
        ({}, {}, "direct", "measured on processors with AVX2 only"),
        ({}, {"convolution": "winograd"}, "winograd", "as asked"),
        ({}, {"convolution": "taps"}, "taps", "as asked"),
    ],
)
def test_our_convolutions_are_chosen_where_they_were_measured(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, bool],
    changes: dict[str, Any],
    chosen: str,
    reason: str,
) -> None:
    monkeypatch.setattr(processor, "capabilities", lambda: capabilities)
    monkeypatch.setattr(processor, "numba_has_openmp", lambda: True)
    choice = plan(**{"precision": "auto", **changes})
    assert choice.convolution == chosen
    assert [line for line in choice.reasons if "convolutions" in line and reason in line]


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({"convolution": "winograd", "precision": "bf16"}, "in bf16"),
        ({"convolution": "taps", "memory_format": "contiguous"}, "in the contiguous memory format"),
        ({"convolution": "pairs", "memory_format": "contiguous"}, "in the contiguous memory format"),
        ({"convolution": "pairs", "precision": "fp32"}, "in fp32"),
        ({"convolution": "pairs", "precision": "bf16"}, "without AVX512_BF16"),
    ],
)
def test_a_convolution_where_it_is_not_for_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], obstacle: str
) -> None:
    monkeypatch.setattr(processor, "capabilities", lambda: {"avx2": True})
    convolution = changes["convolution"]
    with pytest.raises(
        ConfigError, match=rf"train\.convolution is '{convolution}'.*not {obstacle}.*Use auto or direct"
    ):
        plan(**changes)


@pytest.mark.parametrize(
    ("has_openmp", "changes", "chosen", "reason"),
    [
        (True, {}, True, "pass the memory half as often"),
        (True, {"fused_kernels": True}, True, "as asked"),
        (True, {"fused_kernels": False}, False, "as asked"),
        (True, {"memory_format": "contiguous"}, False, "none in the contiguous memory format"),
        (False, {}, False, "none without the system's OpenMP (libgomp)"),
    ],
)
def test_kernels_are_fused_where_they_can_be(
    monkeypatch: pytest.MonkeyPatch, has_openmp: bool, changes: dict[str, Any], chosen: bool, reason: str
) -> None:
    monkeypatch.setattr(processor, "numba_has_openmp", lambda: has_openmp)
    choice = plan(**changes)
    assert choice.fused is chosen and choice.describe()["fused_kernels"] == str(chosen).lower()
    assert [line for line in choice.reasons if "fused kernels" in line and reason in line]


@pytest.mark.parametrize(
    ("changes", "obstacle"),
    [
        ({"memory_format": "contiguous"}, "in the contiguous memory format"),
        ({}, r"without the system's OpenMP \(libgomp\)"),
    ],
)
def test_fused_kernels_where_there_are_none_are_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], obstacle: str
) -> None:
    monkeypatch.setattr(processor, "numba_has_openmp", lambda: "memory_format" in changes)
    with pytest.raises(
        ConfigError, match=rf"train\.fused_kernels is true.*none {obstacle}.*Use auto or false"
    ):
        plan(fused_kernels=True, **changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"train\.device is 'cuda'.*Use auto or cpu"):
        plan(device="cuda")


def test_pairs_want_the_systems_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "capabilities", lambda: {"avx2": True, "avx512_bf16": True})
    monkeypatch.setattr(processor, "numba_has_openmp", lambda: False)
    assert plan(precision="bf16").convolution == "taps"
    with pytest.raises(ConfigError, match=r"'pairs', which there is not without the system's OpenMP"):
        plan(precision="bf16", convolution="pairs")


GPU = torch.device("cuda")


def test_what_a_gpu_gets_needs_none_to_be_looked_at() -> None:
    config = small_config(train__batch_size=50, train__micro_batch_size="auto").train
    assert choices.choose_micro_batch(config, GPU, 32)[0] == 50
    alone, together = (choices.choose_graphs("auto", GPU, Processes(count=count)) for count in (1, 2))
    assert alone[0] and not together[0] and "in several processes" in together[1]
    with pytest.raises(ConfigError, match="cuda_graphs is true, but there are none in several processes"):
        choices.choose_graphs(True, GPU, Processes(count=2))
    for precision in ("fp32", "bf16"):
        chosen, reason = choices.choose_convolution(
            "auto", device=GPU, precision=precision, layout=torch.channels_last, compiles=False
        )
        assert chosen == "direct" and "on cuda" in reason
    with pytest.raises(ConfigError, match=r"'taps', which there is not on cuda"):
        choices.choose_convolution(
            "taps", device=GPU, precision="bf16", layout=torch.channels_last, compiles=False
        )
