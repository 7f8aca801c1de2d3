// pack_codebook - codewords as the filter reads them: float16 fragments, keys and bounds.
//   e = fma(c, scale, -centre); fragments -2 ê, fragments_low -2 (e - ê), keys |e|² - kappa n²,
//   bounds of each chunk: n = max of |e| and |ê|, δ = max |ê - e| and what centring rounded; the same
//   n and another δ for both halves together
// launch  grid = n_groups, block = 128: a warp for each chunk, a quad for each codeword; shared = 0
// in      groups slots scales centres words order
// out     fragments fragments_low keys bounds bounds_low
// needs   order: 32 places a group, codewords by norm; columns past dim become zero
// numeric float32 values rounded once (fma), norms in float64, bounds rounded up
// cost    32 dim values read, 128 dim B written a group
// source  layout: PTX ISA, mma.m16n8k16 with .f16; bounds: BOUND.md
#include "bound.cuh"

namespace saec {

struct PackCodebook {  // parameters
  const int64* groups;    // IN  (n_groups, 2) slot, number of the group within it
  const int64* slots;     // IN  (n_slots, 11) see SLOT_
  const float* scales;    // IN  (n_slots) power of two that brings codewords to order 2^6
  const float* centres;   // IN  (n_columns) subtracted from scaled codewords
  const float* words;     // IN  (n_words) codewords as they are
  const int32* order;     // IN  (n_groups, 32) codeword at each place, -1 for none
  uint32* fragments;      // OUT (groups, steps, 2, 32, 4) of each field
  uint32* fragments_low;  // OUT the same
  float* keys;            // OUT (n_groups, 4, 4, 4) see KEYS
  float* bounds;          // OUT (n_groups, 4, 2)
  float* bounds_low;      // OUT (n_groups, 4, 2)
};

__device__ __forceinline__ void add_square(double& sum, float value) {
  sum = add_rn(sum, mul_rn(widened(value), widened(value)));
}

__device__ __forceinline__ double whole_quad(double value) {
  value += __shfl_xor_sync(FULL_WARP, value, 1);
  return value + __shfl_xor_sync(FULL_WARP, value, 2);
}

__device__ __forceinline__ double greatest_of_warp(double value) {
  for (int32 apart = 4; apart < WARP; apart *= 2) {
    value = fmax(value, __shfl_xor_sync(FULL_WARP, value, apart));
  }
  return value;
}

__device__ __forceinline__ void pack_codebook(const PackCodebook& p) {
  const int64 slot = p.groups[int64(blockIdx.x) * 2];
  const int64 group = p.groups[int64(blockIdx.x) * 2 + 1];
  const Field field = Field::of(p.slots, slot);
  const int32 lane = threadIdx.x % WARP;
  const int32 chunk = threadIdx.x / WARP;
  const int32 place = lane / 4;  // within the chunk
  const int32 block = place / 2;
  const int32 holder = 4 * (2 * chunk + place % 2) + lane % 4;
  const int64 at = ((field.group + group) * 4 + chunk) * CHUNK + place;
  const int32 codeword = p.order[at];
  const float* word = p.words + field.word + int64(codeword) * field.dim;
  const bool folded = field.dim <= FOLDED_DIM;

  double squares = 0.0;
  double high_squares = 0.0;
  double low_squares = 0.0;
  double both_squares = 0.0;
  double rounding_squares = 0.0;
  double rest_squares = 0.0;
  for (int32 s = 0; s < field.steps; s++) {
#pragma unroll
    for (int32 q = 0; q < 2; q++) {
      uint32 high = 0;
      uint32 low = 0;
#pragma unroll
      for (int32 i = 0; i < 2; i++) {
        const int32 column = STEP * s + 8 * q + 2 * (lane % 4) + i;
        if (codeword < 0 || column >= field.dim) continue;
        const float e = fma_rn(word[column], p.scales[slot], -p.centres[field.column + column]);
        const float half = f16_value(f16_bits(e));
        const float left = e - half;
        const float half_left = f16_value(f16_bits(left));
        high |= uint32(f16_bits(-2.0f * half)) << (16 * i);
        low |= uint32(f16_bits(-2.0f * half_left)) << (16 * i);
        add_square(squares, e);
        add_square(high_squares, half);
        add_square(low_squares, half_left);
        add_square(both_squares, half + half_left);  // exact
        add_square(rounding_squares, left);
        add_square(rest_squares, left - half_left);
      }
      const int64 step = field.fragment + (group * field.steps + s) * STEP_WORDS;
      const int32 within = ((block / 2) * WARP + holder) * 4 + 2 * (block % 2);
      const int64 fragment = step + within;
      p.fragments[fragment + q] = high;
      if (!folded) {
        p.fragments_low[fragment + q] = low;
      } else if (q == 0) {
        p.fragments_low[fragment] = low;
        p.fragments_low[fragment + 1] = high;
      }
    }
  }
  squares = whole_quad(squares);
  const double norm =
      sqrt(fmax(squares, fmax(whole_quad(high_squares), whole_quad(both_squares))));
  const double lowest = mul_rn(double(padded_columns(field.dim)), widened(LOWEST_OF_ROW));
  const double centring = add_rn(add_rn(mul_rn(0x1p-24, norm), 0x1p-50), lowest);
  const double low_norm = sqrt(whole_quad(low_squares));
  const double rounding = sqrt(whole_quad(rounding_squares)) + centring;
  const double rest =
      add_rn(add_rn(sqrt(whole_quad(rest_squares)), centring), mul_rn(0x1p-11, low_norm));
  // the places without a codeword add nothing to the bounds of their chunk
  const double reach = greatest_of_warp(codeword < 0 ? 0.0 : norm);
  const float bound = narrowed_up(greatest_of_warp(codeword < 0 ? 0.0 : rounding));
  const float bound_low = narrowed_up(greatest_of_warp(codeword < 0 ? 0.0 : rest));
  const double kappa = widened(chained_bound(field.dim));
  if (lane % 4 == 0) {
    const int64 key = (((field.group + group) * 4 + block) * 4 + chunk) * 4 + place % 2;
    p.keys[key] = p.keys[key + 2] =
        codeword < 0 ? WORST : narrowed(sub_rn(squares, mul_rn(mul_rn(kappa, reach), reach)));
  }
  if (lane == 0) {
    const int64 first = ((field.group + group) * 4 + chunk) * 2;
    p.bounds[first] = p.bounds_low[first] = narrowed_up(reach);
    p.bounds[first + 1] = bound;
    p.bounds_low[first + 1] = bound_low;
  }
}

}  // namespace saec

#define PACK_CODEBOOK(NAME)                                                  \
  SAEC_KERNEL void __launch_bounds__(128) NAME(const saec::PackCodebook p) { \
    saec::pack_codebook(p);                                                  \
  }                                                                          \
  SAEC_EXPORT(NAME)

#ifndef SAEC_ONE_KERNEL
PACK_CODEBOOK(pack_codebook)
#endif
