"""What this machine is good at: device, precision and memory format, each chosen with a reason."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from cifarflow.config.schema import TrainConfig
from cifarflow.errors import ConfigError

BF16_UNITS = ("amx_bf16", "avx512_bf16")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputePlan:
    """How the arithmetic is done; `reasons` says for each choice why."""

    device: torch.device
    precision: str
    memory_format: torch.memory_format
    reasons: tuple[str, ...]

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def describe(self) -> dict[str, str]:
        """The choices as plain text, for metrics and tags."""
        layout = "channels_last" if self.memory_format == torch.channels_last else "contiguous"
        return {"device": self.device.type, "precision": self.precision, "memory_format": layout}


def plan_compute(config: TrainConfig) -> ComputePlan:
    """Resolve the `auto` choices for this machine. Raises ConfigError when `cuda` is asked for and there is none."""
    chosen_device, device_reason = _choose_device(config.device)
    chosen_precision, precision_reason = _choose_precision(config.precision, chosen_device)
    channels_last = config.memory_format != "contiguous"
    asked = config.memory_format != "auto"
    layout_reason = "channels_last: " + ("as asked" if asked else "convolutions are fastest on it")
    return ComputePlan(
        device=chosen_device,
        precision=chosen_precision,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        reasons=(device_reason, precision_reason, layout_reason if channels_last else "contiguous: as asked"),
    )


def _choose_device(device: str) -> tuple[torch.device, str]:
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError(
            "params.yaml: train.device is 'cuda', but torch sees no CUDA device here. Use auto or cpu."
        )
    if available and device != "cpu":
        return torch.device("cuda"), f"cuda: {torch.cuda.get_device_name()}"
    return torch.device("cpu"), f"cpu: {torch.get_num_threads()} threads"


def _choose_precision(precision: str, device: torch.device) -> tuple[str, str]:
    if precision != "auto":
        return precision, f"{precision}: as asked"
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return (
            ("bf16", "bf16: the GPU has units for it")
            if supported
            else ("fp32", "fp32: the GPU lacks bf16 units")
        )
    units = [name for name in BF16_UNITS if _cpu_capabilities().get(name)]
    if units:
        return "bf16", f"bf16: the processor has {units[0]}"
    return "fp32", f"fp32: the processor has no bf16 units ({', '.join(BF16_UNITS)})"


def _cpu_capabilities() -> Mapping[str, object]:
    """What torch knows of the processor. Its flags, not a timing: a busy machine must not change what is computed."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # not there in torch 2.11
    return capabilities() if capabilities else {}
