"""The compiled loop over a block of numbers: one pass, without the GIL, near the speed of the cache.

It gives what is needed to see that a block is healthy: the largest bit pattern without its sign (such patterns sort
like |x|, and a NaN lies above infinity, which lies above every number), how many elements are zero, and the sums of x
and of its square. These are exact for one-byte codes, else float32 (float64 for float64) over a row of `ROW` elements,
and float64 from row to row. What it finds suspicious `statistics` looks at again with numpy.

The loop is written in LLVM's own language, once for all formats, with vectors that LLVM cuts to the machine's. llvmlite
compiles it when a format is first met: in hundredths of a second, so that nothing has to be kept on a disk.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import llvmlite.binding as llvm

_VECTORS = '"min-legal-vector-width"="256" "prefer-vector-width"="256"'
"""512 bits are a little faster, and slow the processor's clock down for the checksum that comes next."""

LANES = 32
"""Elements of one step: enough that no sum waits for itself. What a block has beyond a multiple is not looked at."""

ROW = 2048
"""Elements of one sum in small numbers: few enough to be accurate, and for 16 bits to hold a code's."""


@dataclass(frozen=True, slots=True)
class _Loop:
    """How a format's elements are measured: lines of LLVM that set %magnitude, %total and %square from %bits.

    `total` and `square`: how many sums there are side by side, and of which type.
    """

    bits: int
    total: tuple[int, str]
    square: tuple[int, str]
    magnitude: str
    sums: str


def _splat(value: str, kind: str, lanes: int = LANES) -> str:
    return f"<{', '.join([f'{kind} {value}'] * lanes)}>"


def _places(start: int, stop: int, step: int = 1) -> str:
    """Which lanes a shuffle takes."""
    taken = range(start, stop, step)
    return f"<{len(taken)} x i32> <{', '.join(f'i32 {lane}' for lane in taken)}>"


_V = f"<{LANES} x "
_HALF = LANES // 2


def _ieee(bits: int, real: str, number: str) -> _Loop:
    """A floating-point format; `number` sets %x."""
    suffix, wide = {"float": "f32", "double": "f64"}[real], f"{_V}{real}>"
    return _Loop(
        bits, (LANES, real), (LANES, real),
        f"%magnitude = and {_V}i{bits}> %bits, {_splat(str((1 << (bits - 1)) - 1), f'i{bits}')}",
        f"""{number}
  %total = fadd {wide} %old.total, %x
  %square = call {wide} @llvm.fmuladd.v{LANES}{suffix}({wide} %x, {wide} %x, {wide} %old.square)""",
    )  # fmt: skip


_FLOAT16 = f"""
  %wide = zext {_V}i16> %bits to {_V}i32>
  %top.bit = and {_V}i32> %wide, {_splat("32768", "i32")}
  %sign = shl {_V}i32> %top.bit, {_splat("16", "i32")}
  %rest = and {_V}i32> %wide, {_splat("32767", "i32")}
  %shifted = shl {_V}i32> %rest, {_splat("13", "i32")}
  %joined = or {_V}i32> %sign, %shifted
  %small = bitcast {_V}i32> %joined to {_V}float>
  %x = fmul {_V}float> %small, {_splat("0x46F0000000000000", "float")}"""
"""Its bits in float32's places are the number over 2^112, denormal ones too; not so NaN and infinity."""

_BFLOAT16 = f"""
  %pairs = bitcast {_V}i16> %bits to <{_HALF} x i32>
  %low.bits = shl <{_HALF} x i32> %pairs, {_splat("16", "i32", _HALF)}
  %high.bits = and <{_HALF} x i32> %pairs, {_splat("-65536", "i32", _HALF)}
  %low = bitcast <{_HALF} x i32> %low.bits to <{_HALF} x float>
  %high = bitcast <{_HALF} x i32> %high.bits to <{_HALF} x float>
  %x = shufflevector <{_HALF} x float> %low, <{_HALF} x float> %high, {_places(0, LANES)}"""
"""Two at a time, which are the halves of 32 bits: in another order, which no sum cares about."""


def _codes(magnitude: str, even: str, odd: str) -> _Loop:
    """One-byte integers, as pairs of 16 bits; `even` and `odd` say how each one of a pair comes out of it.

    LLVM makes one instruction of two products and their sum.
    """
    lines, quarter = [f"%pairs = bitcast {_V}i8> %bits to <{_HALF} x i16>", even, odd], f"<{_HALF // 2} x i32>"
    for name in ("even", "odd"):
        lines += [
            f"%{name}.wide = sext <{_HALF} x i16> %{name} to <{_HALF} x i32>",
            f"%{name}.squares = mul nsw <{_HALF} x i32> %{name}.wide, %{name}.wide",
            *(
                f"%{name}.{half} = shufflevector <{_HALF} x i32> %{name}.squares, <{_HALF} x i32> poison, "
                + _places(half, _HALF, 2) for half in (0, 1)
            ),
            f"%{name}.sum = add nsw {quarter} %{name}.0, %{name}.1",
        ]  # fmt: skip
    lines += [
        f"%both = add <{_HALF} x i16> %even, %odd", f"%total = add <{_HALF} x i16> %old.total, %both",
        f"%more.square = add {quarter} %even.sum, %odd.sum", f"%square = add {quarter} %old.square, %more.square",
    ]  # fmt: skip
    return _Loop(8, (_HALF, "i16"), (_HALF // 2, "i32"), magnitude, "\n  ".join(lines))


_EIGHT = _splat("8", "i16", _HALF)
_LOOPS = {
    "float64": _ieee(64, "double", f"%x = bitcast {_V}i64> %bits to {_V}double>"),
    "float32": _ieee(32, "float", f"%x = bitcast {_V}i32> %bits to {_V}float>"),
    "bfloat16": _ieee(16, "float", _BFLOAT16),
    "float16": _ieee(16, "float", _FLOAT16),
    "uint8": _codes(
        f"%magnitude = or {_V}i8> %bits, zeroinitializer",
        f"%even = and <{_HALF} x i16> %pairs, {_splat('255', 'i16', _HALF)}",
        f"%odd = lshr <{_HALF} x i16> %pairs, {_EIGHT}",
    ),
    "int8": _codes(
        f"%magnitude = call {_V}i8> @llvm.abs.v{LANES}i8({_V}i8> %bits, i1 false)",
        f"%up = shl <{_HALF} x i16> %pairs, {_EIGHT}\n  %even = ashr <{_HALF} x i16> %up, {_EIGHT}",
        f"%odd = ashr <{_HALF} x i16> %pairs, {_EIGHT}",
    ),
}  # fmt: skip

_TEXT = """
define void @measure(ptr %data, i64 %steps, ptr %found) {vectors} {{
start:
  %some = icmp ne i64 %steps, 0
  br i1 %some, label %row, label %end

row:
  %first = phi i64 [ 0, %start ], [ %next, %row.end ]
  %all.zeros = phi i64 [ 0, %start ], [ %sum.zeros, %row.end ]
  %all.total = phi double [ 0.0, %start ], [ %sum.total, %row.end ]
  %all.square = phi double [ 0.0, %start ], [ %sum.square, %row.end ]
  %all.top = phi <{L} x i{B}> [ zeroinitializer, %start ], [ %top, %row.end ]
  %far = add i64 %first, {row_steps}
  %last = call i64 @llvm.umin.i64(i64 %far, i64 %steps)
  br label %step

step:
  %at = phi i64 [ %first, %row ], [ %next, %step ]
  %old.top = phi <{L} x i{B}> [ %all.top, %row ], [ %top, %step ]
  %old.zeros = phi <{L} x i{B}> [ zeroinitializer, %row ], [ %zeros, %step ]
  %old.total = phi {total} [ zeroinitializer, %row ], [ %total, %step ]
  %old.square = phi {square} [ zeroinitializer, %row ], [ %square, %step ]
  %place = getelementptr <{L} x i{B}>, ptr %data, i64 %at
  %bits = load <{L} x i{B}>, ptr %place, align 1
  {magnitude}
  %top = call <{L} x i{B}> @llvm.umax.v{L}i{B}(<{L} x i{B}> %old.top, <{L} x i{B}> %magnitude)
  %is.zero = icmp eq <{L} x i{B}> %magnitude, zeroinitializer
  %minus = sext <{L} x i1> %is.zero to <{L} x i{B}>
  %zeros = sub <{L} x i{B}> %old.zeros, %minus
  {sums}
  %next = add i64 %at, 1
  %more = icmp ult i64 %next, %last
  br i1 %more, label %step, label %row.end

row.end:
  %wide.zeros = {wide_zeros}
  %row.zeros = call i64 @llvm.vector.reduce.add.v{L}i64(<{L} x i64> %wide.zeros)
  %sum.zeros = add i64 %all.zeros, %row.zeros
  {add_total}
  {add_square}
  %on = icmp ult i64 %next, %steps
  br i1 %on, label %row, label %end

end:
  %end.top = phi <{L} x i{B}> [ zeroinitializer, %start ], [ %top, %row.end ]
  %end.zeros = phi i64 [ 0, %start ], [ %sum.zeros, %row.end ]
  %end.total = phi double [ 0.0, %start ], [ %sum.total, %row.end ]
  %end.square = phi double [ 0.0, %start ], [ %sum.square, %row.end ]
  %largest = call i{B} @llvm.vector.reduce.umax.v{L}i{B}(<{L} x i{B}> %end.top)
  %largest.wide = {wide_largest}
  store i64 %largest.wide, ptr %found
  %place.zeros = getelementptr i64, ptr %found, i64 1
  store i64 %end.zeros, ptr %place.zeros
  %place.total = getelementptr i64, ptr %found, i64 2
  store double %end.total, ptr %place.total
  %place.square = getelementptr i64, ptr %found, i64 3
  store double %end.square, ptr %place.square
  ret void
}}
"""


_SCAN = """
define i64 @scan(ptr %run, ptr %found) {{
start:
  %file = load i64, ptr %run
  {fields}
  %file.int = trunc i64 %file to i32
  %part = alloca {{ i64, i64, double, double }}
  br label %block

block:
  %at = phi i64 [ %first, %start ], [ %after, %merge ]
  %crc = phi i64 [ 0, %start ], [ %crc.masked, %merge ]
  %left = sub i64 %stop, %at
  %wanted = call i64 @llvm.umin.i64(i64 %left, i64 %block.bytes)
  %got = call i64 %read(i32 %file.int, ptr %buffer, i64 %wanted, i64 %at)
  %short = icmp ne i64 %got, %wanted
  br i1 %short, label %end, label %hash

hash:
  %crc.next = call i64 %extend(i64 %crc, ptr %buffer, i64 %got)
  %crc.masked = and i64 %crc.next, 4294967295
  %steps = udiv i64 %got, {step_bytes}
  call void @measure(ptr %buffer, i64 %steps, ptr %part)
  br label %merge

merge:
  {merged}
  %after = add i64 %at, %got
  %more = icmp ult i64 %after, %stop
  br i1 %more, label %block, label %end

end:
  %done = phi i64 [ %at, %block ], [ %after, %merge ]
  %crc.last = phi i64 [ %crc, %block ], [ %crc.masked, %merge ]
  store i64 %crc.last, ptr %run.crc
  ret i64 %done
}}
"""


def _scan_source(loop: _Loop) -> str:
    fields = []
    for index, (name, kind) in enumerate(
        [("first", "i64"), ("stop", "i64"), ("block.bytes", "i64"), ("buffer", "ptr"), ("read", "ptr"),
         ("extend", "ptr")], start=1
    ):  # fmt: skip
        fields += [f"%p{index} = getelementptr i64, ptr %run, i64 {index}", f"%{name} = load {kind}, ptr %p{index}"]
    fields.append("%run.crc = getelementptr i64, ptr %run, i64 7")
    joins = {
        "i64": "add i64 %a{i}, %b{i}",
        "double": "fadd double %a{i}, %b{i}",
        "top": "call i64 @llvm.umax.i64(i64 %a{i}, i64 %b{i})",
    }
    merged = []
    for i, how in enumerate(("top", "i64", "double", "double")):
        kind = "double" if how == "double" else "i64"
        merged += [
            f"%f{i} = getelementptr i64, ptr %found, i64 {i}", f"%g{i} = getelementptr i64, ptr %part, i64 {i}",
            f"%a{i} = load {kind}, ptr %f{i}", f"%b{i} = load {kind}, ptr %g{i}",
            f"%c{i} = {joins[how].format(i=i)}", f"store {kind} %c{i}, ptr %f{i}",
        ]  # fmt: skip
    step_bytes = LANES * loop.bits // 8
    return _SCAN.format(fields="\n  ".join(fields), merged="\n  ".join(merged), step_bytes=step_bytes)


def _source(loop: _Loop) -> str:
    return _TEXT.format(
        vectors=_VECTORS, L=LANES, B=loop.bits, row_steps=ROW // LANES, magnitude=loop.magnitude, sums=loop.sums,
        total=f"<{loop.total[0]} x {loop.total[1]}>", square=f"<{loop.square[0]} x {loop.square[1]}>",
        wide_zeros=_cast("zext", f"{_V}i{loop.bits}>", f"{_V}i64>", "%zeros"),
        add_total=_add_up("total", *loop.total), add_square=_add_up("square", *loop.square),
        wide_largest=_cast("zext", f"i{loop.bits}", "i64", "%largest"),
    )  # fmt: skip


def _add_up(name: str, lanes: int, kind: str) -> str:
    """Lines that add a row's sums to those of all rows."""
    how = {"float": "fpext", "double": "fpext", "i16": "sitofp", "i32": "sitofp"}[kind]
    widened = _cast(how, f"<{lanes} x {kind}>", f"<{lanes} x double>", f"%{name}")
    added = f"reassoc double @llvm.vector.reduce.fadd.v{lanes}f64"
    return f"""%wide.{name} = {widened}
  %sum.{name} = call {added}(double %all.{name}, <{lanes} x double> %wide.{name})"""


def _cast(how: str, kind: str, wanted: str, value: str) -> str:
    """LLVM refuses a cast that widens or narrows nothing."""
    return f"{how if kind != wanted else 'bitcast'} {kind} {value} to {wanted}"


class Found(ctypes.Structure):
    """What a loop finds: the largest pattern without its sign, the zeros, the sums of x and of its square."""

    _fields_: ClassVar = [
        ("top", ctypes.c_int64), ("zeros", ctypes.c_int64), ("total", ctypes.c_double), ("square", ctypes.c_double),
    ]  # fmt: skip
    top: int
    zeros: int
    total: float
    square: float


class Run(ctypes.Structure):
    """Bytes `[first, stop)` of an open file, to be read through a buffer of `block_bytes`, hashed and measured.

    `read` is the address of pread, `extend` that of a checksum's C function. `crc` is filled in.
    """

    _fields_: ClassVar = [
        ("file", ctypes.c_int64), ("first", ctypes.c_int64), ("stop", ctypes.c_int64), ("block_bytes", ctypes.c_int64),
        ("buffer", ctypes.c_void_p), ("read", ctypes.c_void_p), ("extend", ctypes.c_void_p), ("crc", ctypes.c_int64),
    ]  # fmt: skip
    crc: int


PREAD = ctypes.cast(ctypes.CDLL(None).pread, ctypes.c_void_p).value or 0


@dataclass(frozen=True, slots=True)
class Kernel:
    """The compiled loops for a format's elements. Both let other threads run.

    `measure` takes the address of the elements, how many steps of `LANES`, and a `Found` by reference to
    fill. `scan` takes a `Run` and an empty `Found` by reference, adds up what it measures, and returns where it ended.
    """

    measure: Callable[[int, int, Any], None]
    scan: Callable[[Any, Any], int]


@lru_cache
def kernel(name: str) -> Kernel | None:
    """Compile the loops for a format; None where this process may not make code of its own."""
    if not _may_execute():
        return None
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    module = llvm.parse_assembly(_source(_LOOPS[name]) + _scan_source(_LOOPS[name]))
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    _kept.append(engine)
    measure = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    scan = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
    return Kernel(measure(engine.get_function_address("measure")), scan(engine.get_function_address("scan")))


def _may_execute() -> bool:
    """Whether memory that was written to may be made executable: hardened systems forbid it, and LLVM then crashes."""
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        first = ctypes.c_char.from_buffer(page)
        address = ctypes.addressof(first)
        del first
        allowed = ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)
        return int(allowed) == 0


_kept: list[Any] = []
"""What owns the compiled code: it lives as long as the process."""
