"""Each `auto` of params.yaml resolved by what this machine is good at: the choice, and a reason that is printed."""

import os
import shutil

import torch

from cifarflow.compute import processor
from cifarflow.compute.processes import Processes
from cifarflow.config.schema import TrainConfig
from cifarflow.errors import ConfigError

COMPILERS = ("c++", "g++", "clang++")
MICRO_BATCHES_AT_ONCE = 6
"""So many 128 pictures of 32 px took 0.94 to 0.95 of the time of one after the other with our convolutions, and the
library's gained nothing (docs/experiments.md, 27 November 2026); more would want more memory."""
LEAST_MICRO_BATCH = 2
"""Batch normalisation learns nothing from one picture, and refuses it where a map is one pixel."""


def choose_device(device: str) -> tuple[torch.device, str]:
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError(
            "params.yaml: train.device is 'cuda', but torch sees no CUDA device here. Use auto or cpu."
        )
    if available and device != "cpu":
        return torch.device("cuda"), f"cuda: there is a {torch.cuda.get_device_name()}"
    return torch.device("cpu"), "cpu: as asked" if device == "cpu" else "cpu: torch sees no GPU"


def choose_precision(precision: str, device: torch.device) -> tuple[str, str]:
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


def choose_memory_format(memory_format: str) -> tuple[torch.memory_format, str]:
    if memory_format == "contiguous":
        return torch.contiguous_format, "contiguous: as asked"
    asked = memory_format != "auto"
    return torch.channels_last, "channels_last: " + (
        "as asked" if asked else "convolutions are fastest on it"
    )


def choose_micro_batch(config: TrainConfig, device: torch.device, image_size: int) -> tuple[int, str]:
    size = config.micro_batch_size
    if size != "auto":
        return size, f"micro-batches of {size}: as asked"
    if device.type == "cuda":
        return config.batch_size, f"micro-batches of {config.batch_size}: a GPU takes the whole batch at once"
    size = min(config.batch_size, max(LEAST_MICRO_BATCH, processor.pictures_at_once(image_size)))
    return size, f"micro-batches of {size}, batch norm's pictures: as many as stay in the cache"


def choose_at_once(
    at_once: int | str, *, device: torch.device, compiles: bool, convolution: str
) -> tuple[int, str]:
    obstacles = {f"on {device.type}": device.type != "cpu", "in a compiled step": compiles}
    obstacle = next((where for where, is_there in obstacles.items() if is_there), None)
    if isinstance(at_once, int):
        if at_once > 1 and obstacle:
            raise ConfigError(
                f"params.yaml: train.micro_batches_at_once is {at_once}, but only one can be {obstacle}. Use auto or 1."
            )
        return at_once, f"{at_once} micro-batch{'es' * (at_once > 1)} at once: as asked"
    if obstacle:
        return 1, f"1 micro-batch at once: more cannot be {obstacle}"
    if convolution == "direct":
        return 1, "1 micro-batch at once: direct convolutions gain nothing by more"
    most = MICRO_BATCHES_AT_ONCE
    return most, f"up to {most} micro-batches at once: convolutions of more pictures are faster"


def choose_threads(threads: int | str, processes: Processes) -> tuple[int, str]:
    if isinstance(threads, int):
        return threads, f"{threads} threads: as asked"
    own = max(1, processor.usable_processors() // processes.local_count)
    if processes.local_count > 1:  # torchrun has told torch to take one
        return own, f"{own} threads: the share of each of {processes.local_count} processes"
    if (asked := torch.get_num_threads()) < own:
        return asked, f"{asked} threads: torch's own number (OMP_NUM_THREADS sets it) on {own} processors"
    return own, f"{own} threads: the processors that this process may use"


def choose_compile(compile: bool | str, device: torch.device) -> tuple[bool, str]:
    if compile is False:
        return False, "not compiled: as asked"
    if compile == "auto":
        # Measured (docs/experiments.md): on an H100 a minute for tenths of a second; 1.25 times a processor's step.
        if device.type == "cuda":
            return False, "not compiled: on a GPU that takes longer than it saves in a training"
        return False, "not compiled: on a processor that makes steps slower"
    if device.type == "cpu" and not (os.environ.get("CXX") or any(map(shutil.which, COMPILERS))):
        raise ConfigError(
            f"params.yaml: train.compile is true, but there is no C++ compiler here ({', '.join(COMPILERS)}, or the "
            "environment variable CXX). Install one, or use auto."
        )
    return True, "compiled: as asked"


def choose_graphs(graphs: bool | str, device: torch.device, processes: Processes) -> tuple[bool, str]:
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


def choose_fused(
    fused: bool | str, *, device: torch.device, layout: torch.memory_format, compiles: bool
) -> tuple[bool, str]:
    if fused is False:
        return False, "no fused kernels: as asked"
    obstacles = {
        f"on {device.type}": device.type != "cpu",
        "in the contiguous memory format": layout != torch.channels_last,
        "in a compiled step": compiles,
        "without the system's OpenMP (libgomp)": device.type == "cpu" and not processor.numba_has_openmp(),
    }
    obstacle = next((where for where, is_there in obstacles.items() if is_there), None)
    if obstacle and fused is True:
        raise ConfigError(
            f"params.yaml: train.fused_kernels is true, but there are none {obstacle}: they are for a processor, "
            "channels_last and a step that is not compiled. Use auto or false."
        )
    if obstacle:
        return False, f"no fused kernels: there are none {obstacle}"
    why = (
        "as asked"
        if fused is True
        else "they pass the memory half as often (once they are compiled: 10 s, once)"
    )
    return True, f"fused kernels for batch norm, GELU and pooling: {why}"


def choose_convolution(
    convolution: str, *, device: torch.device, precision: str, layout: torch.memory_format, compiles: bool
) -> tuple[str, str]:
    obstacles = {
        f"on {device.type}": device.type != "cpu",
        "in the contiguous memory format": layout != torch.channels_last,
        "in a compiled step": compiles,
    }
    own = next((where for where, is_there in obstacles.items() if is_there), None)
    of_method = {
        "taps": own,
        "winograd": own or (f"in {precision}" if precision != "fp32" else None),
        "pairs": own or _obstacle_to_pairs(precision),
    }
    if obstacle := of_method.get(convolution):
        wants = {"winograd": "fp32, ", "pairs": "bf16 with AVX512_BF16, "}.get(convolution, "")
        raise ConfigError(
            f"params.yaml: train.convolution is {convolution!r}, which there is not {obstacle}: it is for a processor, "
            f"{wants}channels_last and a step that is not compiled. Use auto or direct."
        )
    if convolution != "auto":
        return convolution, f"{convolution} convolutions: as asked"
    if own:
        return "direct", f"direct convolutions: there are no others {own}"
    if not processor.capabilities().get("avx2"):
        return "direct", "direct convolutions: others were measured on processors with AVX2 only"
    if precision == "fp32":
        return "winograd", "winograd convolutions of 3x3, where they pay: fewer products in fp32"
    if not of_method["pairs"] and not processor.capabilities().get("amx_bf16"):
        return "pairs", "pairs convolutions: loops of our own for the gradients of filters in bf16"
    return (
        "taps",
        "taps convolutions of 3x3, where they pay: filter gradients without the padding of small maps",
    )


def _obstacle_to_pairs(precision: str) -> str | None:
    """On a processor: why its instruction for pairs of bfloat16 numbers cannot be used."""
    if precision != "bf16":
        return f"in {precision}"
    if not processor.capabilities().get("avx512_bf16"):
        return "without AVX512_BF16"
    return None if processor.numba_has_openmp() else "without the system's OpenMP (libgomp)"
