// looped.cuh - the filter for sixteen rows at a time whose fragments wait in shared memory, and whose
// codewords come straight from global memory: any dim, any rows. Slower than the registers of
// assign_update.cu; it serves what that cannot hold, and the few rows of recheck.cu. Each step of 16
// columns is added up by itself, so that the matrix unit errs by a step's size, not the key's
// (BOUND.md).
#pragma once
#include "filter.cuh"

namespace saec {

constexpr int32 TILE = 16;  // rows of one mma.sync

// 32-bit words of shared memory that a warp's rows take.
__device__ __forceinline__ constexpr int32 tile_words(int32 steps, bool halves) {
  return steps * (halves ? 2 : 1) * WARP * 4;
}

// Writes the fragments of rows `row[0]` (for g) and `row[1]` (for g + 8), given by their first
// values, and returns their bounds; [step][high, low][lane][4].
template <class ROW, bool HALVES>
__device__ __forceinline__ void load_tile(const void* values, const int64 (&row)[2],
                                          const Field& field, float scale, const float* centre,
                                          uint32* tile, RowBound (&bound)[2], int32 lane) {
  RowSums sums[2];
  for (int32 s = 0; s < field.steps; s++) {
#pragma unroll
    for (int32 i = 0; i < 4; i++) {
      const int32 column = STEP * s + 8 * (i / 2) + 2 * (lane & 3);
      uint32 high, low;
      framed<ROW, HALVES>(values, row[i % 2], column, field.dim, scale, centre, sums[i % 2], high,
                          low);
      const int32 at = s * (HALVES ? 2 : 1) * WARP * 4 + lane * 4 + i;
      tile[at] = high;
      if (HALVES) tile[at + WARP * 4] = low;
    }
  }
#pragma unroll
  for (int32 h = 0; h < 2; h++) {
    bound[h] = row_bound(quad_sum(sums[h].squares), quad_sum(sums[h].residual_squares),
                         field.dim, stepwise_bound(field.dim));
  }
}

__device__ __forceinline__ void read_fragment(uint32 (&a)[4], const uint32* tile, int32 lane) {
  const uint4 words = reinterpret_cast<const uint4*>(tile)[lane];
  a[0] = words.x;
  a[1] = words.y;
  a[2] = words.z;
  a[3] = words.w;
}

// Best chunks of the tile's rows g and g + 8.
template <bool HALVES>
__device__ __forceinline__ void scan_tile(const uint32* tile, const Packed& packed,
                                          const Field& field, const RowBound (&bound)[2],
                                          Best (&best)[2], int32 lane) {
  best[0].clear();
  best[1].clear();
  const float excess = chained_bound(field.dim) - STEPWISE_KEY;
  constexpr int32 PER_STEP = (HALVES ? 2 : 1) * WARP * 4;
  for (int32 g = 0; g < field.groups; g++) {
    const float* keys = packed.keys + int64(g) * KEYS + (lane & 3) * 4;
    const int64 group = int64(g) * field.steps * STEP_WORDS;
    float d[4][4] = {};
#pragma unroll 1  // several steps at once spill
    for (int32 s = 0; s < field.steps; s++) {
      uint32 high[4], low[4];
      read_fragment(high, tile + s * PER_STEP, lane);
      if (HALVES) read_fragment(low, tile + s * PER_STEP + WARP * 4, lane);
#pragma unroll
      for (int32 pair = 0; pair < 2; pair++) {
        const int64 at = (group + int64(s) * STEP_WORDS) / 4 + (pair * WARP + lane);
        const uint4 e = load_cached(reinterpret_cast<const uint4*>(packed.fragments) + at);
        float step[2][4] = {};
        if (HALVES) {
          // The small products first, so that they are added up at their own scale.
          const uint4 r = load_cached(reinterpret_cast<const uint4*>(packed.fragments_low) + at);
          mma_f16(step[0], high, r.x, r.y);
          mma_f16(step[1], high, r.z, r.w);
          mma_f16(step[0], low, e.x, e.y);
          mma_f16(step[1], low, e.z, e.w);
        }
        mma_f16(step[0], high, e.x, e.y);
        mma_f16(step[1], high, e.z, e.w);
#pragma unroll
        for (int32 i = 0; i < 8; i++) d[2 * pair + i / 4][i % 4] += step[i / 4][i % 4];
      }
    }
#pragma unroll
    for (int32 i = 0; i < 16; i++) d[i / 4][i % 4] += keys[i / 4 * 16 + i % 4];
    const float* chunk_bound = packed.bounds + (int64(g) * 4 + (lane & 3)) * 2;
#pragma unroll
    for (int32 h = 0; h < 2; h++) {
      float least = d[0][2 * h];
#pragma unroll
      for (int32 i = 1; i < CHUNK; i++) least = fminf(least, d[i / 2][2 * h + i % 2]);
      // keys start as if each were one chain
      least = fmaf(fmaf(excess, chunk_bound[0], -bound[h].slope), chunk_bound[0], least);
      least = fmaf(-bound[h].slant, chunk_bound[1], least);
      // no tag: here the time goes into products
      if (least < best[h].best) best[h].group = g;
      best[h].take(least);
    }
  }
  best[0].reduce(lane);
  best[1].reduce(lane);
}

// Codes of the tile's rows, UNPROVED where two codewords are too close; the same in a whole quad.
template <class ROW, bool HALVES>
__device__ __forceinline__ void tile_codes(const void* values, const int64 (&row)[2],
                                           const Field& field, float scale, const float* centre,
                                           const Packed& packed, const int32* order, uint32* tile,
                                           uint32 (&codes)[2], int32 lane) {
  RowBound bound[2];
  load_tile<ROW, HALVES>(values, row, field, scale, centre, tile, bound, lane);
  __syncwarp();
  Best best[2];
  scan_tile<HALVES>(tile, packed, field, bound, best, lane);
#pragma unroll
  for (int32 h = 0; h < 2; h++) {
    const auto y = [&](int32 s, int32 q, bool low) {
      const int32 half = low ? 2 * s + 1 : (HALVES ? 2 * s : s);
      return tile[half * WARP * 4 + lane * 4 + 2 * q + h];
    };
    codes[h] = code_of<HALVES, 0>(best[h], best[h].group / 4, packed, order, field, bound[h],
                                  stepwise_bound(field.dim), lane, field.steps, y);
  }
  __syncwarp();
}

// The packed codebook of a field in global memory.
template <class P>
__device__ __forceinline__ Packed packed_of(const P& p, const Field& field) {
  return {p.fragments + field.fragment, p.fragments_low + field.fragment,
          p.keys + field.group * KEYS, p.bounds + field.group * 4 * 2};
}

}  // namespace saec
