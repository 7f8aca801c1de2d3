// limit_rates - how fast a processor multiplies matrices and takes minima, with nothing else to do.
//   limit_matrix      d_i += A · B of 8 accumulators
//   limit_minimum_f32 v_i = min(v_i, v_i+1) of 16 values: FMNMX
//   limit_minimum_s32 the same of integers: VIMNMX, before sm_90 IMNMX
//   limit_minimum3_s32, limit_minimum3_f32
//                     v_i = min(v_i, v_i+1, v_i+2): VIMNMX3 from sm_90 on, FMNMX3 from sm_100 on,
//                     two instructions elsewhere
// launch  grid = a few blocks a processor, block = 256; shared = 0
// in      seeds steps
// out     kept cycles
// numeric results only keep the work from being left out
// cost    per thread and step: 16 minima of 1 or 2 values; per warp and step: 8 products of
//         16 · 16 · 8
#include "cycles.cuh"

namespace saec {

struct LimitRates {     // parameters
  const uint32* seeds;  // IN  (32) any, not zero
  uint32* kept;         // OUT (grid, block)
  int64* cycles;        // OUT (grid) clocks that a block took
  int32 steps;          // IN  rounds over all values
};

constexpr int32 VALUES = 16;
constexpr int32 ACCUMULATORS = 8;

struct LeastF32 {
  using T = float;
  static __device__ __forceinline__ T from(uint32 bits) { return float(bits & 0xFFFFFFu); }
  static __device__ __forceinline__ T of(T a, T b, T) { return fminf(a, b); }
};
struct LeastS32 {
  using T = int32;
  static __device__ __forceinline__ T from(uint32 bits) { return int32(bits); }
  static __device__ __forceinline__ T of(T a, T b, T) { return min(a, b); }
};
struct Least3F32 {
  using T = float;
  static __device__ __forceinline__ T from(uint32 bits) { return float(bits & 0xFFFFFFu); }
  static __device__ __forceinline__ T of(T a, T b, T c) { return fminf(a, fminf(b, c)); }
};
struct Least3S32 {
  using T = int32;
  static __device__ __forceinline__ T from(uint32 bits) { return int32(bits); }
  static __device__ __forceinline__ T of(T a, T b, T c) {
#ifdef SAEC_EMULATED
    return min(a, min(b, c));
#else
    return __vimin3_s32(a, b, c);
#endif
  }
};

template <class LEAST>
__device__ __forceinline__ void minima(const LimitRates& p) {
  typename LEAST::T v[VALUES];
#pragma unroll
  for (int32 i = 0; i < VALUES; i++) {
    v[i] = LEAST::from(p.seeds[i] * (2 * threadIdx.x + 1));
  }
  const Stopwatch watch = Stopwatch::begin();
#pragma unroll 1
  for (int32 s = 0; s < p.steps; s++) {
    // each takes what its neighbours hold by then, so that no compiler can foresee the end
#pragma unroll
    for (int32 i = 0; i < VALUES; i++) {
      v[i] = LEAST::of(v[i], v[(i + 1) % VALUES], v[(i + 2) % VALUES]);
    }
  }
  watch.end(p.cycles);
  uint32 kept = 0;
#pragma unroll
  for (int32 i = 0; i < VALUES; i++) kept ^= uint32(v[i]);
  p.kept[int64(blockIdx.x) * blockDim.x + threadIdx.x] = kept;
}

struct Matrix {};

template <>
__device__ __forceinline__ void minima<Matrix>(const LimitRates& p) {
  uint32 a[4];
  float d[ACCUMULATORS][4];
  // each begins otherwise, or two that are the same could be computed as one
#pragma unroll
  for (int32 i = 0; i < ACCUMULATORS; i++) {
#pragma unroll
    for (int32 j = 0; j < 4; j++) d[i][j] = float(4 * i + j);
  }
  // halves between 1 and 2: a product of zeros draws less power, and then the clock is higher
#pragma unroll
  for (int32 i = 0; i < 4; i++) a[i] = (p.seeds[(threadIdx.x + i) % 32] & 0x03FF03FFu) | 0x3C003C00u;
  const Stopwatch watch = Stopwatch::begin();
#pragma unroll 1
  for (int32 s = 0; s < p.steps; s++) {
#pragma unroll
    for (int32 i = 0; i < ACCUMULATORS; i++) mma_f16(d[i], a, a[i % 4], a[(i + 1) % 4]);
  }
  watch.end(p.cycles);
  uint32 kept = 0;
#pragma unroll
  for (int32 i = 0; i < ACCUMULATORS; i++) {
#pragma unroll
    for (int32 j = 0; j < 4; j++) kept ^= __float_as_uint(d[i][j]);
  }
  p.kept[int64(blockIdx.x) * blockDim.x + threadIdx.x] = kept;
}

}  // namespace saec

#define LIMIT_RATES(NAME, WORK)                                            \
  SAEC_KERNEL void __launch_bounds__(256) NAME(const saec::LimitRates p) { \
    saec::minima<saec::WORK>(p);                                           \
  }                                                                        \
  SAEC_EXPORT(NAME)

#ifndef SAEC_ONE_KERNEL
LIMIT_RATES(limit_matrix, Matrix)
LIMIT_RATES(limit_minimum_f32, LeastF32)
LIMIT_RATES(limit_minimum_s32, LeastS32)
LIMIT_RATES(limit_minimum3_f32, Least3F32)
LIMIT_RATES(limit_minimum3_s32, Least3S32)
#endif
