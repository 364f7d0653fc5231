"""Work for a GPU that is asked for ahead of its time, and done beside what runs there."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

Begun = tuple[tuple[Tensor, ...], torch.cuda.Stream]
"""What was asked for, and the stream on which it is made."""


def one_ahead(
    device: torch.device, prepare: Callable[[int], tuple[Tensor, ...]], numbers: Iterable[int]
) -> Iterator[tuple[Tensor, ...]]:
    """`prepare(number)` for each number, in order; on a GPU it is made while the step before it runs.

    So `prepare` must not read what that step writes; what the steps before that one wrote is there.
    """
    if device.type != "cuda":
        yield from map(prepare, numbers)
        return
    streams = torch.cuda.Stream(device), torch.cuda.Stream(device)  # so that one waits for its own work alone
    waiting: Begun | None = None
    for turn, number in enumerate(numbers):
        begun, waiting = waiting, _start(prepare, number, stream=streams[turn % 2])
        if begun is not None:
            yield _ready(begun)
    if waiting is not None:
        yield _ready(waiting)


def _start(prepare: Callable[[int], tuple[Tensor, ...]], number: int, *, stream: torch.cuda.Stream) -> Begun:
    """Ask for it behind all that the stream at work was asked for by now."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        return prepare(number), stream


def _ready(begun: Begun) -> tuple[Tensor, ...]:
    """The tensors, for the stream at work: it waits until they are made, and they are kept until it is done."""
    tensors, stream = begun
    at_work = torch.cuda.current_stream()
    at_work.wait_stream(stream)
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(at_work)
    return tensors
