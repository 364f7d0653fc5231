"""How the arithmetic of a training is done: a plan, with each `auto` of params.yaml resolved for this machine."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from cifarflow.compute import choices
from cifarflow.compute.operations import OwnOperations
from cifarflow.compute.processes import Processes
from cifarflow.config.schema import TrainConfig

Code = TypeVar("Code", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputePlan:
    """How the arithmetic is done; `reasons` says for each choice why."""

    device: torch.device
    precision: str
    memory_format: torch.memory_format
    convolution: str
    fused: bool
    micro_batch_size: int
    micro_batches_at_once: int
    threads: int
    compile: bool
    cuda_graphs: bool
    deterministic: bool
    reasons: tuple[str, ...]

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def operations(self, sizes: Sequence[int]) -> contextlib.AbstractContextManager[object]:
        """Around a forward pass that is trained on, of micro-batches of so many pictures, one behind the other."""
        library_alone = self.device.type != "cpu" or self.compile
        if library_alone:
            return contextlib.nullcontext()
        return OwnOperations(self.convolution, fused=self.fused, sizes=sizes)

    def compiled(self, what: Code, *, reorders_loops: bool = True) -> Code:
        """What is called in place of a network, whose weights it shares, or of a function.

        `reorders_loops` is to be false for what works on lists of tensors, over which the compiler of torch 2.11
        stumbles on a GPU.
        """
        if not self.compile:
            return what
        # On a GPU each size of batch has code of its own: few sizes occur, and code for any is slower.
        dynamic = False if self.device.type == "cuda" else None
        options = None if reorders_loops else {"loop_ordering_after_fusion": False}
        return torch.compile(what, dynamic=dynamic, options=options)  # pyright: ignore[reportReturnType, reportCallIssue, reportArgumentType]

    def take_effect(self) -> None:
        """Make the settings of the whole process that go with the plan."""
        torch.set_num_threads(self.threads)
        # What stays in fp32 beside bf16 can do with TF32, which has more bits of mantissa than bf16.
        loose = self.device.type == "cuda" and self.precision == "bf16"
        torch.set_float32_matmul_precision("high" if loose else "highest")
        torch.backends.cudnn.allow_tf32 = (
            loose  # convolutions have a switch of their own, which is on by default
        )
        # On a GPU, who waits for a compiler can wait for the quickest convolutions too: 5 % of a training there.
        torch.backends.cudnn.benchmark = self.compile and not self.deterministic
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
            "fused_kernels": str(self.fused).lower(),
            "micro_batch_size": str(self.micro_batch_size),
            "micro_batches_at_once": str(self.micro_batches_at_once),
            "compile": str(self.compile).lower(),
        }


def plan_compute(config: TrainConfig, *, image_size: int, processes: Processes | None = None) -> ComputePlan:
    """Resolve the `auto` choices for this machine and pictures of `image_size` pixels a side.

    Raises ConfigError when `cuda` is asked for and there is none, compiling and there is no compiler, or a method of
    convolution or several micro-batches at once where they are not for.
    """
    device, device_reason = choices.choose_device(config.device)
    precision, precision_reason = choices.choose_precision(config.precision, device)
    layout, layout_reason = choices.choose_memory_format(config.memory_format)
    micro_batch_size, micro_batch_reason = choices.choose_micro_batch(config, device, image_size)
    threads, threads_reason = choices.choose_threads(config.threads, processes or Processes())
    compiles, compile_reason = choices.choose_compile(config.compile, device)
    graphs, graphs_reason = choices.choose_graphs(config.cuda_graphs, device, processes or Processes())
    convolution, convolution_reason = choices.choose_convolution(
        config.convolution, device=device, precision=precision, layout=layout, compiles=compiles
    )
    fused, fused_reason = choices.choose_fused(
        config.fused_kernels, device=device, layout=layout, compiles=compiles
    )
    at_once, at_once_reason = choices.choose_at_once(
        config.micro_batches_at_once, device=device, compiles=compiles, convolution=convolution
    )
    reasons = [
        device_reason,
        threads_reason,
        precision_reason,
        layout_reason,
        convolution_reason,
        *([fused_reason] if device.type == "cpu" else []),
        micro_batch_reason,
        *([at_once_reason] if device.type == "cpu" else []),
        compile_reason,
        *([graphs_reason] if device.type == "cuda" else []),
    ]
    return ComputePlan(
        device=device,
        precision=precision,
        memory_format=layout,
        convolution=convolution,
        fused=fused,
        micro_batch_size=micro_batch_size,
        micro_batches_at_once=at_once,
        threads=threads,
        compile=compiles,
        cuda_graphs=graphs,
        deterministic=config.deterministic,
        reasons=(*reasons, *(["deterministic: as asked"] if config.deterministic else [])),
    )
