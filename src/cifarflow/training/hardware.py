"""What this machine is good at: each `auto` of params.yaml resolved, with a reason that is printed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from cifarflow import processor
from cifarflow.config.schema import TrainConfig
from cifarflow.errors import ConfigError
from cifarflow.training.convolutions import METHODS, OwnConvolutions
from cifarflow.training.processes import Processes

CACHED_PIXELS = (
    1 << 17
)  # of one micro-batch: 128 pictures of 32 x 32, whose activations stay in a processor's cache
COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputePlan:
    """How the arithmetic is done; `reasons` says for each choice why."""

    device: torch.device
    precision: str
    memory_format: torch.memory_format
    convolution: str
    micro_batch_size: int
    threads: int
    compile: bool
    cuda_graphs: bool
    deterministic: bool
    reasons: tuple[str, ...]

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def convolutions(self) -> contextlib.AbstractContextManager[object]:
        """Around a forward pass that is trained on."""
        return OwnConvolutions(self.convolution) if self.convolution in METHODS else contextlib.nullcontext()

    def compiled(self, model: nn.Module) -> nn.Module:
        """What a step calls in place of `model`, whose weights it shares."""
        if not self.compile:
            return model
        # On a GPU each size of batch has code of its own: few sizes occur, and code for any is slower.
        return torch.compile(model, dynamic=False if self.device.type == "cuda" else None)  # pyright: ignore[reportReturnType]

    def take_effect(self) -> None:
        """Make the settings of the whole process that go with the plan."""
        torch.set_num_threads(self.threads)
        # What stays in fp32 beside bf16 (Muon's products) can do with TF32, which has more bits of mantissa than bf16.
        loose = self.device.type == "cuda" and self.precision == "bf16"
        torch.set_float32_matmul_precision("high" if loose else "highest")
        torch.use_deterministic_algorithms(self.deterministic)
        if self.deterministic:
            os.environ.setdefault(
                "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
            )  # cuBLAS wants it before its first product

    def describe(self) -> dict[str, str]:
        """What decides the result beside the params, as plain text for keys, metrics and tags."""
        layout = "channels_last" if self.memory_format == torch.channels_last else "contiguous"
        return {
            "device": self.device.type,
            "precision": self.precision,
            "memory_format": layout,
            "convolution": self.convolution,
            "micro_batch_size": str(self.micro_batch_size),
            "compile": str(self.compile).lower(),
        }


def plan_compute(config: TrainConfig, *, image_size: int, processes: Processes | None = None) -> ComputePlan:
    """Resolve the `auto` choices for this machine and pictures of `image_size` pixels a side.

    Raises ConfigError when `cuda` is asked for and there is none, compiling and there is no compiler, or a method of
    convolution where it is not for.
    """
    device, device_reason = _choose_device(config.device)
    precision, precision_reason = _choose_precision(config.precision, device)
    layout, layout_reason = _choose_memory_format(config.memory_format)
    micro_batch_size, micro_batch_reason = _choose_micro_batch(config, device, image_size)
    threads, threads_reason = _choose_threads(config.threads, processes or Processes())
    compiles, compile_reason = _choose_compile(config.compile, device)
    graphs, graphs_reason = _choose_graphs(config.cuda_graphs, device, processes or Processes())
    convolution, convolution_reason = _choose_convolution(
        config.convolution, device=device, precision=precision, layout=layout, compiles=compiles
    )
    reasons = [
        device_reason,
        threads_reason,
        precision_reason,
        layout_reason,
        convolution_reason,
        micro_batch_reason,
        compile_reason,
        *([graphs_reason] if device.type == "cuda" else []),
    ]
    return ComputePlan(
        device=device,
        precision=precision,
        memory_format=layout,
        convolution=convolution,
        micro_batch_size=micro_batch_size,
        threads=threads,
        compile=compiles,
        cuda_graphs=graphs,
        deterministic=config.deterministic,
        reasons=(*reasons, *(["deterministic: as asked"] if config.deterministic else [])),
    )


def _choose_device(device: str) -> tuple[torch.device, str]:
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError(
            "params.yaml: train.device is 'cuda', but torch sees no CUDA device here. Use auto or cpu."
        )
    if available and device != "cpu":
        return torch.device("cuda"), f"cuda: there is a {torch.cuda.get_device_name()}"
    return torch.device("cpu"), "cpu: as asked" if device == "cpu" else "cpu: torch sees no GPU"


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
    if units := processor.bf16_units():
        return "bf16", f"bf16: the processor has {units[0]}"
    return "fp32", f"fp32: the processor has no bf16 units ({', '.join(processor.BF16_UNITS)})"


def _choose_memory_format(memory_format: str) -> tuple[torch.memory_format, str]:
    if memory_format == "contiguous":
        return torch.contiguous_format, "contiguous: as asked"
    asked = memory_format != "auto"
    return torch.channels_last, "channels_last: " + (
        "as asked" if asked else "convolutions are fastest on it"
    )


def _choose_micro_batch(config: TrainConfig, device: torch.device, image_size: int) -> tuple[int, str]:
    size = config.micro_batch_size
    if size != "auto":
        return size, f"micro-batches of {size}: as asked"
    if device.type == "cuda":
        return config.batch_size, f"micro-batches of {config.batch_size}: a GPU takes the whole batch at once"
    size = min(config.batch_size, max(1, CACHED_PIXELS // image_size**2))
    return size, f"micro-batches of {size}: their activations stay in the cache"


def _choose_threads(threads: int | str, processes: Processes) -> tuple[int, str]:
    if isinstance(threads, int):
        return threads, f"{threads} threads: as asked"
    own = max(1, processor.usable_processors() // processes.local_count)
    if processes.local_count > 1:  # torchrun has told torch to take one
        return own, f"{own} threads: the share of each of {processes.local_count} processes"
    chosen = min(own, torch.get_num_threads())
    return chosen, f"{chosen} threads: the processors that this process may use"


def _choose_compile(compile: bool | str, device: torch.device) -> tuple[bool, str]:
    if compile is False:
        return False, "not compiled: as asked"
    if compile == "auto":
        # Measured on processors (docs/experiments.md); on a GPU compiling takes longer than the default trains.
        return False, "not compiled: it paid on no machine that was measured"
    if device.type == "cpu" and not (os.environ.get("CXX") or any(map(shutil.which, COMPILERS))):
        raise ConfigError(
            f"params.yaml: train.compile is true, but there is no C++ compiler here ({', '.join(COMPILERS)}, or the "
            "environment variable CXX). Install one, or use auto."
        )
    return True, "compiled: as asked"


def _choose_graphs(graphs: bool | str, device: torch.device, processes: Processes) -> tuple[bool, str]:
    obstacles = {f"on {device.type}": device.type != "cuda", "in several processes": processes.count > 1}
    obstacle = next((where for where, is_there in obstacles.items() if is_there), None)
    if graphs is True and obstacle:
        raise ConfigError(
            f"params.yaml: train.cuda_graphs is true, but there are none {obstacle}. Use auto or false."
        )
    if graphs != "auto":
        return bool(graphs), "steps as CUDA graphs: as asked" if graphs else "no CUDA graphs: as asked"
    if obstacle:
        return False, f"no CUDA graphs: there are none {obstacle}"
    return True, "steps as CUDA graphs: asking for kernels one by one takes longer than small ones run"


def _choose_convolution(
    convolution: str, *, device: torch.device, precision: str, layout: torch.memory_format, compiles: bool
) -> tuple[str, str]:
    obstacles = {
        f"on {device.type}": device.type != "cpu",
        "in the contiguous memory format": layout != torch.channels_last,
        "in a compiled step": compiles,
    }
    own = next((where for where, is_there in obstacles.items() if is_there), None)
    winograd = own or (f"in {precision}" if precision != "fp32" else None)
    obstacle = {"taps": own, "winograd": winograd}.get(convolution)
    if obstacle:
        fp32 = "fp32, " if convolution == "winograd" else ""
        raise ConfigError(
            f"params.yaml: train.convolution is {convolution!r}, which there is not {obstacle}: it is for a processor, "
            f"{fp32}channels_last and a step that is not compiled. Use auto or direct."
        )
    if convolution != "auto":
        return convolution, f"{convolution} convolutions: as asked"
    if own:
        return "direct", f"direct convolutions: there are no others {own}"
    if not processor.capabilities().get("avx2"):
        return "direct", "direct convolutions: others were measured on processors with AVX2 only"
    if precision == "fp32":
        return "winograd", "winograd convolutions of 3x3, where they pay: fewer products in fp32"
    return (
        "taps",
        "taps convolutions of 3x3, where they pay: filter gradients without the padding of small maps",
    )
