// Conversions, roundings and bit operations, one element a thread.
#include "port.cuh"

struct Numbers {  // parameters
  const float* x;        // IN  (n,)
  const float* y;        // IN  (n,)
  const float* z;        // IN  (n,)
  const double* v;       // IN  (n,)
  const double* w;       // IN  (n,)
  const uint16* halves;  // IN  (n,)
  uint16* x_half;        // OUT (n,)
  float* half_values;    // OUT (n,)
  uint32* pairs;         // OUT (n,)
  double* x_widened;     // OUT (n,)
  float* v_narrowed;     // OUT (n,)
  float* v_narrowed_up;  // OUT (n,)
  float* fma;            // OUT (n,)
  double* sum;           // OUT (n,)
  double* difference;    // OUT (n,)
  double* product;       // OUT (n,)
  int64* v_rounded;      // OUT (n,)
  int32* bits;           // OUT (n, 5) counts and places of the bits of x and v
  int32 n;
};

__device__ void compute(const Numbers& p) {
  const int64 i = static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.n) return;
  const float x = saec::load_cached(p.x + i);
  const float y = saec::load_cached(p.y + i);
  const double v = p.v[i];
  const double w = p.w[i];
  p.x_half[i] = saec::f16_bits(x);
  p.half_values[i] = saec::f16_value(p.halves[i]);
  p.pairs[i] = saec::f16_pair(x, y);
  p.x_widened[i] = saec::widened(x);
  p.v_narrowed[i] = saec::narrowed(v);
  p.v_narrowed_up[i] = saec::narrowed_up(v);
  p.fma[i] = saec::fma_rn(x, y, p.z[i]);
  p.sum[i] = saec::add_rn(v, w);
  p.difference[i] = saec::sub_rn(v, w);
  p.product[i] = saec::mul_rn(v, w);
  p.v_rounded[i] = saec::rint_int64(v);
  const uint32 word = __float_as_uint(x);
  const int64 wide = __double_as_longlong(v);
  p.bits[5 * i] = __popc(word);
  p.bits[5 * i + 1] = __clz(static_cast<int>(word));
  p.bits[5 * i + 2] = __ffs(static_cast<int>(word));
  p.bits[5 * i + 3] = __popcll(static_cast<uint64>(wide));
  p.bits[5 * i + 4] = max(min(static_cast<int>(word), 1000), -1000);
}

#define NUMBERS(name, body)                                                  \
  SAEC_KERNEL void __launch_bounds__(128) name(const Numbers p) { body(p); } \
  SAEC_EXPORT(name)

#ifndef SAEC_ONE_KERNEL
NUMBERS(numbers, compute)
#endif
