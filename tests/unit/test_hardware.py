"""The choice of device, precision and memory format."""

import pytest
import torch

from cifarflow.errors import ConfigError
from cifarflow.training import hardware
from cifarflow.training.hardware import plan_compute
from tests.support.small import small_config


def test_what_is_asked_for_is_taken() -> None:
    config = small_config(train__precision="bf16", train__memory_format="contiguous", train__device="cpu")
    plan = plan_compute(config.train)
    assert plan.describe() == {"device": "cpu", "precision": "bf16", "memory_format": "contiguous"}
    with plan.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "fp32"), ({}, "fp32")],
)
def test_the_processors_flags_decide_the_precision(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(hardware, "_cpu_capabilities", lambda: capabilities)
    plan = plan_compute(small_config(train__precision="auto", train__device="cpu").train)
    assert plan.precision == precision
    assert any(reason.startswith(precision) for reason in plan.reasons)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match=r"train\.device is 'cuda'.*Use auto or cpu"):
        plan_compute(small_config(train__device="cuda").train)
