"""Vectors as Numba values: a type for <lanes x number> and the few operations the kernels need.

A vector of 64 floats is one Numba value; LLVM splits it over as many registers as the machine
needs. No operation here allows LLVM to reassociate or to contract a multiplication and an addition,
so what a kernel computes is what its text says, on every machine.

Vectors live in registers only: arrays are read and written by `load` and `store`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, register_model

_ELEMENTS = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int16: ir.IntType(16),
    types.int32: ir.IntType(32),
    types.int64: ir.IntType(64),
    types.boolean: ir.IntType(1),
}


_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
# rows that a kernel takes at once: 4 x 64 sums fill 16 of 32 wide registers
ROW_LANES = 64 if "+avx512f" in _FEATURES else 16
# bits of the registers whose pairs of bytes one instruction multiplies and adds; 0 where none does
PAIR_BITS = 512 if "+avx512bw" in _FEATURES else 256 if "+avx2" in _FEATURES else 0


class Vector(types.Type):  # type: ignore[misc]
    """The Numba type of `lanes` numbers of one element type."""

    def __init__(self, element: Any, lanes: int) -> None:
        self.element = element
        self.lanes = lanes
        super().__init__(f"Vector({element}x{lanes})")


def _llvm(vector: Vector) -> ir.VectorType:
    return ir.VectorType(_ELEMENTS[vector.element], vector.lanes)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, _llvm(vector))


def _element_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _call(builder: Any, name: str, vector: Vector, args: Any) -> Any:
    """Call the LLVM intrinsic `name` on operands of one vector type."""
    llvm = _llvm(vector)
    bits = {types.float32: "f32", types.float64: "f64"}[vector.element]
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(llvm, [llvm] * len(args)), f"{name}.v{vector.lanes}{bits}"
    )
    return builder.call(function, args)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def load(typing: Any, lanes: Any, array: Any, index: Any) -> Any:
    """Return array[index : index + lanes] as a vector."""
    vector = Vector(array.dtype, lanes.literal_value)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element_pointer(context, builder, signature.args[1], args[1], args[2])
        size = context.get_abi_sizeof(_ELEMENTS[vector.element])
        return builder.load(builder.bitcast(pointer, _llvm(vector).as_pointer()), align=size)

    return vector(lanes, array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write a vector to array[index : index + lanes]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element_pointer(context, builder, signature.args[0], args[0], args[1])
        size = context.get_abi_sizeof(_ELEMENTS[vector.element])
        builder.store(args[2], builder.bitcast(pointer, args[2].type.as_pointer()), align=size)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


def _spread(builder: Any, vector: Vector, number: Any) -> Any:
    llvm = _llvm(vector)
    nothing = ir.Constant(llvm, ir.Undefined)
    one_lane = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
    places = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(one_lane, nothing, places)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def splat(typing: Any, lanes: Any, number: Any) -> Any:
    """Return a vector whose lanes all hold `number`."""
    element = types.unliteral(number)
    vector = Vector(element, lanes.literal_value)
    return vector(lanes, element), lambda context, builder, signature, args: _spread(
        builder, vector, args[1]
    )


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def broadcast(typing: Any, lanes: Any, array: Any, index: Any) -> Any:
    """Return a vector whose lanes all hold array[index]; a negative index does not wrap."""
    vector = Vector(array.dtype, lanes.literal_value)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _element_pointer(context, builder, signature.args[1], args[1], args[2])
        return _spread(builder, vector, builder.load(pointer))

    return vector(lanes, array, types.intp), generate


def _binary(emit: Callable[[Any, Any, Any], Any], result: Any = None) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def operation(typing: Any, x: Any, y: Any) -> Any:
        out = x if result is None else Vector(result, x.lanes)
        return out(x, y), lambda context, builder, signature, args: emit(builder, *args)

    return operation


add = _binary(lambda builder, x, y: builder.fadd(x, y))
sub = _binary(lambda builder, x, y: builder.fsub(x, y))
mul = _binary(lambda builder, x, y: builder.fmul(x, y))
add_int = _binary(lambda builder, x, y: builder.add(x, y))
sub_int = _binary(lambda builder, x, y: builder.sub(x, y))


def _compared(builder: Any, how: str, x: Any, y: Any) -> Any:
    """Compare lanes; false for NaN, so that a comparison never proves anything about one."""
    if isinstance(x.type.element, ir.IntType):
        return builder.icmp_signed(how, x, y)
    return builder.fcmp_ordered(how, x, y)


greater = _binary(lambda builder, x, y: _compared(builder, ">", x, y), types.boolean)
larger = _binary(lambda builder, x, y: builder.select(_compared(builder, ">", x, y), x, y))
smaller = _binary(lambda builder, x, y: builder.select(_compared(builder, "<", x, y), x, y))


@intrinsic  # type: ignore[untyped-decorator]
def fma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x * y + z, rounded once."""
    return x(x, y, z), lambda context, builder, signature, args: _call(
        builder, "llvm.fma", signature.return_type, args
    )


@intrinsic  # type: ignore[untyped-decorator]
def square_root(typing: Any, x: Any) -> Any:
    """Return the square root, rounded once."""
    return x(x), lambda context, builder, signature, args: _call(
        builder, "llvm.sqrt", signature.return_type, args
    )


@intrinsic  # type: ignore[untyped-decorator]
def pick(typing: Any, mask: Any, x: Any, y: Any) -> Any:
    """Return x where the mask holds, else y."""
    return x(mask, x, y), lambda context, builder, signature, args: builder.select(*args)


@intrinsic  # type: ignore[untyped-decorator]
def with_lane(typing: Any, x: Any, lane: Any, number: Any) -> Any:
    """Return the vector with one lane set to a number; with none, where there is no such lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places = Vector(types.int32, x.lanes)
        numbers = ir.Constant(_llvm(places), list(range(x.lanes)))
        here = builder.icmp_signed("==", numbers, _spread(builder, places, args[1]))
        return builder.select(here, _spread(builder, x, args[2]), args[0])

    return x(x, types.int32, x.element), generate


def _taken(builder: Any, x: Any, y: Any, places: Iterable[int]) -> Any:
    """Return lanes of x and, counted on from its last, of y."""
    numbers = list(places)
    kind = ir.VectorType(ir.IntType(32), len(numbers))
    return builder.shuffle_vector(x, y, ir.Constant(kind, numbers))


def _folded(emit: Callable[[Any, Any, Any], Any]) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def fold(typing: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            left, lanes = args[0], x.lanes
            while lanes > 1:
                lanes //= 2
                halves = range(lanes), range(lanes, 2 * lanes)
                left = emit(builder, *(_taken(builder, left, left, places) for places in halves))
            return builder.extract_element(left, ir.Constant(ir.IntType(32), 0))

        return x.element(x), generate

    return fold


# of a vector's lanes: halves are put together until one is left
lanes_sum = _folded(lambda builder, x, y: builder.fadd(x, y))
lanes_maximum = _folded(lambda builder, x, y: builder.select(_compared(builder, ">", x, y), x, y))


@intrinsic  # type: ignore[untyped-decorator]
def lanes_maxima(typing: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Return the maximum of each of four vectors, as four lanes."""
    four = Vector(a.element, 4)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def most(x: Any, y: Any, first: Iterable[int], second: Iterable[int]) -> Any:
            left, right = (_taken(builder, x, y, places) for places in (first, second))
            return builder.select(_compared(builder, ">", left, right), left, right)

        rest, lanes = list(args), a.lanes
        while lanes > 4:
            lanes //= 2
            rest = [most(x, x, range(lanes), range(lanes, 2 * lanes)) for x in rest]
        # lanes of two vectors side by side, then of all four
        ab, cd = (most(x, y, [0, 4, 1, 5], [2, 6, 3, 7]) for x, y in (rest[:2], rest[2:]))
        return most(ab, cd, [0, 1, 4, 5], [2, 3, 6, 7])

    return four(a, b, c, d), generate


TAG_BITS = 2


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def tagged(typing: Any, x: Any, tag: Any) -> Any:
    """Return float32 lanes with their lowest TAG_BITS bits replaced by a literal tag."""
    whole = Vector(types.int32, x.lanes)
    number = tag.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        llvm = _llvm(whole)
        bits = builder.bitcast(args[0], llvm)
        kept = builder.and_(bits, ir.Constant(llvm, [-1 << TAG_BITS] * x.lanes))
        marked = builder.or_(kept, ir.Constant(llvm, [number] * x.lanes))
        # else LLVM compares and selects these as integers, where one maximum would do
        return _call(builder, "llvm.arithmetic.fence", x, [builder.bitcast(marked, _llvm(x))])

    return x(x, tag), generate


@intrinsic  # type: ignore[untyped-decorator]
def tags(typing: Any, x: Any) -> Any:
    """Return the tags of float32 lanes as int32."""
    whole = Vector(types.int32, x.lanes)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        llvm = _llvm(whole)
        mask = ir.Constant(llvm, [(1 << TAG_BITS) - 1] * x.lanes)
        return builder.and_(builder.bitcast(args[0], llvm), mask)

    return whole(x), generate


@intrinsic  # type: ignore[untyped-decorator]
def as_float(typing: Any, x: Any) -> Any:
    """Return lanes of integers as float32, rounded to nearest."""
    floats = Vector(types.float32, x.lanes)
    return floats(x), lambda context, builder, signature, args: builder.sitofp(
        args[0], _llvm(floats)
    )


def _rounded(builder: Any, kinds: str, whole: Vector, args: Any) -> Any:
    kind = ir.FunctionType(_llvm(whole), [args[0].type])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.lrint.{kinds}")
    return builder.call(function, args)


@intrinsic  # type: ignore[untyped-decorator]
def nearest(typing: Any, x: Any) -> Any:
    """Return float32 lanes, |x| < 2³¹, as int32: to nearest, ties to even."""
    whole = Vector(types.int32, x.lanes)
    return whole(x), lambda context, builder, signature, args: _rounded(
        builder, f"v{x.lanes}i32.v{x.lanes}f32", whole, args
    )


@intrinsic  # type: ignore[untyped-decorator]
def narrow(typing: Any, x: Any) -> Any:
    """Return the lowest 16 bits of int32 lanes as int16."""
    halves = Vector(types.int16, x.lanes)
    return halves(x), lambda context, builder, signature, args: builder.trunc(
        args[0], _llvm(halves)
    )


@intrinsic  # type: ignore[untyped-decorator]
def paired(typing: Any, x: Any, y: Any) -> Any:
    """Return int32 lanes x and y, 0 to 255 each, as the bytes of int16 lanes."""
    halves = Vector(types.int16, x.lanes)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        high = builder.shl(args[1], ir.Constant(_llvm(x), [8] * x.lanes))
        return builder.trunc(builder.or_(args[0], high), _llvm(halves))

    return halves(x, y), generate


@intrinsic  # type: ignore[untyped-decorator]
def dot_bytes(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """Return z + x₀y₀ + x₁y₁ of int16 lanes modulo 2¹⁶: x of two uint8 each, y of two int8.

    x₀y₀ + x₁y₁ is held at the greatest and the least int16, as the instruction does it.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        step = min(PAIR_BITS // 16, x.lanes)
        name = {
            8: "ssse3.pmadd.ub.sw.128",
            16: "avx2.pmadd.ub.sw",
            32: "avx512.pmaddubs.w.512",
        }.get(step)
        if name is None:
            return builder.add(_dots(builder, *args[:2]), args[2])
        pairs, sums = ir.VectorType(ir.IntType(8), 2 * step), ir.VectorType(ir.IntType(16), step)
        products = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(sums, [pairs, pairs]), f"llvm.x86.{name}"
        )
        parts = []
        for first in range(0, x.lanes, step):
            a, b = (_taken(builder, arg, arg, range(first, first + step)) for arg in args[:2])
            parts.append(
                builder.call(products, [builder.bitcast(a, pairs), builder.bitcast(b, pairs)])
            )
        while len(parts) > 1:
            lanes = range(2 * parts[0].type.count)
            parts = [
                _taken(builder, low, high, lanes)
                for low, high in zip(parts[::2], parts[1::2], strict=True)
            ]
        return builder.add(parts[0], args[2])

    return x(x, y, z), generate


def _dots(builder: Any, x: Any, y: Any) -> Any:
    """Return what the instruction of `dot_bytes` does, where there is none."""
    halves, whole = x.type, ir.VectorType(ir.IntType(32), x.type.count)
    eight = ir.Constant(halves, [8] * halves.count)
    y_low = builder.ashr(builder.shl(y, eight), eight)
    x_low = builder.lshr(builder.shl(x, eight), eight)
    low, high = (
        builder.mul(builder.zext(a, whole), builder.sext(b, whole))
        for a, b in ((x_low, y_low), (builder.lshr(x, eight), builder.ashr(y, eight)))
    )
    found = builder.add(low, high)
    for how, limit in (("<", 2**15 - 1), (">", -(2**15))):
        most = ir.Constant(whole, [limit] * halves.count)
        found = builder.select(builder.icmp_signed(how, found, most), found, most)
    return builder.trunc(found, halves)


@intrinsic  # type: ignore[untyped-decorator]
def widen(typing: Any, x: Any) -> Any:
    """Return float32 lanes as float64, exactly."""
    wide = Vector(types.float64, x.lanes)
    return wide(x), lambda context, builder, signature, args: builder.fpext(args[0], _llvm(wide))


@intrinsic  # type: ignore[untyped-decorator]
def rounded(typing: Any, x: Any) -> Any:
    """Return float64 lanes as int64, to nearest, ties to even."""
    whole = Vector(types.int64, x.lanes)
    return whole(x), lambda context, builder, signature, args: _rounded(
        builder, f"v{x.lanes}i64.v{x.lanes}f64", whole, args
    )


@intrinsic  # type: ignore[untyped-decorator]
def unproved_lanes(typing: Any, mask: Any) -> Any:
    """Return the lanes where the mask does *not* hold as a bit set."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = ir.IntType(mask.lanes)
        bits = builder.not_(builder.bitcast(args[0], lanes))
        return bits if mask.lanes == 64 else builder.zext(bits, ir.IntType(64))

    return types.uint64(mask), generate


@intrinsic  # type: ignore[untyped-decorator]
def lowest_bit(typing: Any, bits: Any) -> Any:
    """Return the position of the lowest bit set of a nonzero uint64."""
    return types.intp(types.uint64), lambda context, builder, signature, args: builder.cttz(
        args[0], ir.Constant(ir.IntType(1), 1)
    )


BYTE = 8
# of each byte the bits that are set, ascending, then the others; and how many are set: a look-up of
# these has no branch, where a loop over bits would mostly be predicted wrong
BITS_SET = np.array(
    [sorted(range(BYTE), key=lambda bit: not byte >> bit & 1) for byte in range(2**BYTE)], np.int32
).reshape(-1)
N_SET = np.array([byte.bit_count() for byte in range(2**BYTE)])


@intrinsic  # type: ignore[untyped-decorator]
def take_next(typing: Any, counter: Any) -> Any:
    """Add one to counter[0] atomically and return what it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(ir.IntType(64), 0)
        pointer = _element_pointer(context, builder, signature.args[0], args[0], zero)
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


TRANSPOSE = 16 if ROW_LANES == 64 else 8


@intrinsic  # type: ignore[untyped-decorator]
def centre_transposed(
    typing: Any,
    rows: Any,
    start: Any,
    dim: Any,
    scale: Any,
    centre: Any,
    column: Any,
    out: Any,
    at: Any,
) -> Any:
    """Write scale * rows - centre of 16 rows and 16 columns, transposed.

    out[at + j * ROW_LANES + i] = fma(rows[start + i * dim + j], scale, -centre[column + j])
    """
    vector = Vector(types.float32, TRANSPOSE)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rows_, start_, dim_, scale_, centre_, column_, out_, at_ = args
        kinds = signature.args
        llvm = _llvm(vector)

        def constant(n: int) -> Any:
            return ir.Constant(ir.IntType(64), n)

        def read(kind: Any, array: Any, index: Any) -> Any:
            pointer = _element_pointer(context, builder, kind, array, index)
            return builder.load(builder.bitcast(pointer, llvm.as_pointer()), align=4)

        places = [ir.Constant(ir.IntType(32), i) for i in range(TRANSPOSE)]
        factor = ir.Constant(llvm, ir.Undefined)
        for place in places:
            factor = builder.insert_element(factor, scale_, place)
        shift = builder.fneg(read(kinds[4], centre_, column_))
        lines = [
            _call(
                builder,
                "llvm.fma",
                vector,
                [
                    read(kinds[0], rows_, builder.add(start_, builder.mul(dim_, constant(i)))),
                    factor,
                    shift,
                ],
            )
            for i in range(TRANSPOSE)
        ]
        # log2(16) rounds of interleaving line i with line i + 8 transpose 16 x 16
        half = TRANSPOSE // 2

        def order(first: int) -> Any:
            places = [first + i // 2 + (TRANSPOSE if i % 2 else 0) for i in range(TRANSPOSE)]
            return ir.Constant(ir.VectorType(ir.IntType(32), TRANSPOSE), places)

        for _ in range(TRANSPOSE.bit_length() - 1):
            lines = [
                builder.shuffle_vector(lines[i], lines[i + half], order(first))
                for i in range(half)
                for first in (0, half)
            ]
        for j, line in enumerate(lines):
            index = builder.add(at_, constant(j * ROW_LANES))
            pointer = _element_pointer(context, builder, kinds[6], out_, index)
            builder.store(line, builder.bitcast(pointer, llvm.as_pointer()), align=4)
        return context.get_dummy_value()

    signature = types.void(
        rows, types.intp, types.intp, types.float32, centre, types.intp, out, types.intp
    )
    return signature, generate
