"""Sums of products of pairs of bfloat16 numbers over many pixels, in the registers of a processor with AVX512_BF16.

Written as the compiler's own code: numba knows neither bfloat16 nor this instruction, and a tile of sums stays in
registers only if all its loops are one piece.
"""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

ROWS = 8
"""Of a tile. Eight rows of two or three vectors leave registers for factors, and are more sums than one has to wait
for: an instruction's result takes several cycles, in each of which two can begin."""
LANES = 16
"""Float32 sums, or pairs of bfloat16 numbers, in a vector of 512 bits."""
BYTES = 4
"""Of a sum, and of a pair."""


class _BFloat16(ir.types.Type):
    """A type that the compiler has, and this way to write its code has not."""

    def __str__(self) -> str:
        return "bfloat"


WHOLE, PAIR = ir.IntType(64), ir.IntType(32)
SUMS = ir.VectorType(ir.FloatType(), LANES)
BITS = ir.VectorType(PAIR, LANES)
PAIRS = ir.VectorType(_BFloat16(), 2 * LANES)
SIGNATURE = types.void(*[types.intp] * 3, *[types.UniTuple(types.intp, 3)] * 3)
DOT = "llvm.x86.avx512bf16.dpbf16ps.512"
"""Sums plus the first times the first of each two pairs, plus the second times the second."""


@intrinsic
def add_tile_of_2(context: Any, left: Any, right: Any, sums: Any, maps: Any, rows: Any, pixels: Any) -> Any:  # noqa: PLR0913
    """Add to float32 sums `[8, 32]` the products of eight rows with 32 columns over the pixels of maps of pairs.

    `left`, `right` and `sums` are addresses, the first two of a pixel. `maps`, the `rows` of pixels in a map and the
    `pixels` in a row are each how many there are, and how many bytes there are from one to the next, left and right.
    """
    return SIGNATURE, _code_of(vectors=2)


@intrinsic
def add_tile_of_3(context: Any, left: Any, right: Any, sums: Any, maps: Any, rows: Any, pixels: Any) -> Any:  # noqa: PLR0913
    """The same to sums `[8, 48]`."""
    return SIGNATURE, _code_of(vectors=3)


def _code_of(*, vectors: int) -> Callable[..., Any]:
    def code(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        left, right, sums, maps, rows, pixels = arguments
        kept = [cgutils.alloca_once(builder, SUMS) for _ in range(ROWS * vectors)]  # they become registers
        places = [_at(builder, sums, at * LANES * BYTES, SUMS) for at in range(len(kept))]
        for place, one in zip(places, kept, strict=True):
            builder.store(_load(builder, place), one)
        with (
            _loop(builder, left, right, maps) as a_map,
            _loop(builder, *a_map, rows) as a_row,
            _loop(builder, *a_row, pixels) as a_pixel,
        ):
            _add_pixel(builder, *a_pixel, kept, vectors)
        for place, one in zip(places, kept, strict=True):
            builder.store(builder.load(one), place).align = BYTES
        return context.get_dummy_value()

    return code


def _add_pixel(builder: Any, left: Any, right: Any, kept: Sequence[Any], vectors: int) -> None:
    dot = cgutils.get_or_insert_function(builder.module, ir.FunctionType(SUMS, [SUMS, PAIRS, PAIRS]), DOT)
    undefined, firsts = ir.Constant(BITS, ir.Undefined), ir.Constant(BITS, [0] * LANES)
    columns = [_load(builder, _at(builder, right, at * LANES * BYTES, BITS)) for at in range(vectors)]
    for row in range(ROWS):
        pair = _load(builder, _at(builder, left, row * BYTES, PAIR))
        alone = builder.insert_element(undefined, pair, PAIR(0))
        everywhere = builder.shuffle_vector(alone, undefined, firsts)
        for column, one in zip(columns, kept[row * vectors : (row + 1) * vectors], strict=True):
            factors = (builder.bitcast(everywhere, PAIRS), builder.bitcast(column, PAIRS))
            builder.store(builder.call(dot, [builder.load(one), *factors]), one)


@contextlib.contextmanager
def _loop(builder: Any, left: Any, right: Any, steps: Any) -> Iterator[tuple[Any, Any]]:
    """As often as the first of `steps` says: the two addresses, each time one step further."""
    count, left_step, right_step = (builder.extract_value(steps, at) for at in range(3))
    with cgutils.for_range(builder, count, intp=WHOLE) as loop:
        yield (
            builder.add(left, builder.mul(loop.index, left_step)),
            builder.add(right, builder.mul(loop.index, right_step)),
        )


def _at(builder: Any, address: Any, offset: int, what: Any) -> Any:
    return builder.inttoptr(builder.add(address, WHOLE(offset)), what.as_pointer())


def _load(builder: Any, place: Any) -> Any:
    loaded = builder.load(place)
    loaded.align = BYTES
    return loaded
