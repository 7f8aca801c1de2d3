"""Kernels with one defect each, and sound ones: what the checks must and must not complain of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kernel_checks.budget import Figures


@dataclass(frozen=True)
class Planted:
    """One kernel: its text, the limits it stands under, and the complaint it must raise.

    Attributes
    ----------
    complaint : str or None
        A part of the complaint; None where there must be none at all.
    row : mapping of str to float, optional
        Its row of the table; what it uses, if not given.
    parameter_bytes : int, optional
        What a launch would give it.
    """

    name: str
    complaint: str | None
    unit: str
    architecture: str = "90"
    limits: Mapping[str, Any] = field(default_factory=dict)
    row: Figures | None = None
    parameter_bytes: int | None = None


_PARAMETERS = "float* out, const float* in, double* wide"
# One struct by value, as our kernels take it; C++ makes it 16 bytes.
_STRUCT = "struct P { float* out; int n; };"


def _kernel(name: str, body: str, parameters: str = _PARAMETERS) -> str:
    head = f'extern "C" __global__ void {name}({parameters})'
    return f"{head} {{\n  int i = threadIdx.x;\n{body}\n}}\n"


# What the filter is meant to be: one matrix instruction for a key.
_MATRIX = {"matrix": True, "products": 1}

# A loop like the filter's: keys from a matrix instruction, the least of them kept.
_MULTIPLIED = """
#if __CUDA_ARCH__ >= 800
#define MULTIPLY(d, a, b, c) \\
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%5}, " \\
      "{%6,%6,%6,%6};" : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) : "r"(a), "r"(b), "f"(c))
#else
#define MULTIPLY(d, a, b, c) \\
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4}, {%5}, " \\
      "{%6,%6,%6,%6};" : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) : "r"(a), "r"(b), "f"(c))
#endif
"""


def _filter(name: str, work: str) -> str:
    loop = f"""
  __shared__ unsigned words[2048];
  __shared__ float keys[2048];
  words[i] = unsigned(in[i]); keys[i] = in[i + 1024];
  __syncthreads();
  unsigned row = unsigned(in[i + 2048]);
  float best = 1e38f, second = 1e38f;
#pragma unroll 1
  for (int k = 0; k < 2000; k++) {{
    float d[4];
    MULTIPLY(d, row, words[k], keys[k]);
    {work}
  }}
  out[i] = best; out[i + 1024] = second;"""
    return _MULTIPLIED + _kernel(name, loop)


_LEAST = "best = fminf(best, fminf(fminf(d[0], d[1]), fminf(d[2], d[3])));"
_NAIVE = """
    for (int j = 0; j < 4; j++) {
      second = fminf(second, fmaxf(best, d[j]));
      int at = d[j] < best ? k : __float_as_int(second);
      best = fminf(best, d[j]);
      second = __int_as_float(at);
    }"""
_PLAIN = """
    d[0] = best;  // every key is multiplied out, without the matrix instruction
    best = fminf(d[0], __fmaf_rn(__uint_as_float(row), keys[k], keys[k + 1]));"""
_EXACT = "  wide[i] = __dadd_rn(__dmul_rn(wide[i], wide[i + 32]), wide[i + 64]);"

PLANTED = (
    # sound ones
    Planted(
        "sound_filter",
        None,
        _filter("sound_filter", _LEAST),
        limits={**_MATRIX, "alu_per_pair": {"90": 2.0}, "registers": 128},
    ),
    Planted("sound_turing", None, _filter("sound_turing", _LEAST), "75", _MATRIX),
    Planted("sound_blackwell", None, _filter("sound_blackwell", _LEAST), "120", _MATRIX),
    Planted("sound_exact", None, _kernel("sound_exact", _EXACT)),
    Planted(
        "sound_widening",
        None,
        _kernel("sound_widening", '  asm("cvt.f64.f32 %0,%1;" : "=d"(wide[i]) : "f"(in[i]));'),
    ),
    Planted(
        "sound_atomic",
        None,
        _kernel("sound_atomic", "  atomicAdd((unsigned long long*)wide, 1ull);"),
    ),
    Planted(
        "sound_parameters",
        None,
        _STRUCT + _kernel("sound_parameters", "  p.out[i] = p.n;", "const P p"),
        parameter_bytes=16,
    ),
    # what does not compile, or takes what nobody gives
    Planted(
        "other_parameters",
        "a launch gives 24 bytes",
        _STRUCT + _kernel("other_parameters", "  p.out[i] = p.n;", "const P p"),
        parameter_bytes=24,
    ),
    Planted("bad_syntax", "does not compile", _kernel("bad_syntax", "  out[i] = ;")),
    Planted(
        "bad_assembly", "does not compile", _kernel("bad_assembly", '  asm volatile("add.f33;");')
    ),
    Planted(
        "newer_instruction",
        "does not compile",
        _filter("newer_instruction", _LEAST).replace("__CUDA_ARCH__ >= 800", "1"),
        "75",
    ),
    # what uses too much
    Planted(
        "spilling",
        "spills",
        _kernel(
            "spilling",
            """
  float held[200];
#pragma unroll
  for (int j = 0; j < 200; j++) held[j] = in[i + 32 * j];
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 200; j++) out[i + 32 * j] = held[j] * held[(j * 7) % 200];""",
        ).replace("void spilling", "void __launch_bounds__(1024, 2) spilling"),
    ),
    Planted(
        "indexed_locally",
        "local memory",
        _kernel(
            "indexed_locally",
            """
  float held[64];
  for (int j = 0; j < 64; j++) held[j] = in[i + 32 * j];
  for (int j = 0; j < 999; j++) held[int(in[j]) & 63] += held[int(in[j + 1]) & 63];
  out[i] = held[i & 63];""",
        ),
    ),
    Planted(
        "many_registers",
        "registers",
        _filter("many_registers", _LEAST),
        limits={"registers": 8},
    ),
    Planted(
        "more_registers",
        "registers",
        _filter("more_registers", _LEAST),
        row={"registers": 8, "stack_bytes": 0, "shared_bytes": 16384},
    ),
    Planted(
        "more_shared",
        "shared_bytes",
        _filter("more_shared", _LEAST),
        row={"registers": 99, "stack_bytes": 0, "shared_bytes": 8192},
    ),
    Planted(
        "more_instructions",
        "alu_per_pair",
        _filter("more_instructions", _LEAST),
        limits=_MATRIX,
        row={"registers": 99, "stack_bytes": 0, "shared_bytes": 16384, "alu_per_pair": 0.5},
    ),
    Planted("no_row", "no row", _kernel("no_row", _EXACT), row={}),
    # slow paths
    Planted("no_matrix", "no HMMA.16816.F32", _filter("no_matrix", _PLAIN), limits=_MATRIX),
    Planted(
        "no_matrix_turing", "no HMMA.1688.F32", _filter("no_matrix_turing", _PLAIN), "75", _MATRIX
    ),
    Planted(
        "naive_least",
        "alu_per_pair",
        _filter("naive_least", _NAIVE),
        limits={**_MATRIX, "alu_per_pair": {"90": 2.0}},
    ),
    Planted(
        "no_loop",
        "no alu_per_pair was found",
        _kernel("no_loop", _EXACT),
        limits={"products": 1, "alu_per_pair": {"90": 2.0}},
    ),
    # what depends on order, or rounds once where it must round twice
    Planted("float_atomic", "float atomic", _kernel("float_atomic", "  atomicAdd(out, in[i]);")),
    Planted("double_atomic", "float atomic", _kernel("double_atomic", "  atomicAdd(wide, 1.0);")),
    Planted(
        "shared_float_atomic",
        "float atomic",
        _kernel(
            "shared_float_atomic",
            "  __shared__ float s; s = 0; __syncthreads(); atomicAdd(&s, in[i]); __syncthreads();"
            " out[i] = s;",
        ),
    ),
    Planted(
        "contracted",
        "contracted float64",
        _kernel("contracted", "  wide[i] = wide[i] * wide[i + 32] + wide[i + 64];"),
    ),
    Planted(
        "flushed_widening", "flushes", _kernel("flushed_widening", "  wide[i] = double(in[i]);")
    ),
    Planted(
        "flushed_narrowing", "flushes", _kernel("flushed_narrowing", "  out[i] = float(wide[i]);")
    ),
)
