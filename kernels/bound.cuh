// bound.cuh - the constants of the filter's bound; BOUND.md derives each of them.
#pragma once
#include "fields.cuh"

namespace saec {

constexpr float UNIT = 0x1p-24f;   // unit roundoff of float32
constexpr float SLACK = 1.0f + 0x1p-12f;  // products of small terms, and the bound's own roundings
constexpr float NORM_FLOOR = 0x1p-57f;    // squares below 2^-126 that are flushed to zero
constexpr float WORST = 3e38f;            // the key of a place without a codeword
// The lowest bits of a key name its group within a window of codewords, or an earlier window.
constexpr int32 WINDOW_GROUPS = 32;
constexpr uint32 EARLIER = WINDOW_GROUPS;
constexpr uint32 TAG_MASK = 2 * WINDOW_GROUPS - 1;

// kappa: what accumulating a key, tagging it and shifting it by its bound may add, relative to
// |c|² + 2|x||c|.
__device__ __forceinline__ float accumulation_bound(int32 dim) {
  const int32 columns = dim <= FOLDED_DIM ? FOLDED_DIM : (dim + STEP - 1) / STEP * STEP;
  return float(3 * columns + 140) * 0x1p-23f;
}

// What a row adds to the bound of each chunk: slope * (the chunk's norm) + slant * (its rounding).
struct RowBound {
  float slope, slant;

  // What the definition's own roundings in float64 may add, and the product of the low halves.
  __device__ __forceinline__ float floor(int32 dim, bool halves) const {
    return float(dim + 4) * 0x1p-54f * slant * slant + (halves ? 0x1p-38f : 0.0f);
  }
};

// From Σ y² and Σ (y - ŷ)² over a whole row, and whether ŷ holds two halves.
__device__ __forceinline__ RowBound row_bound(float squares, float residual_squares, int32 dim,
                                              bool halves) {
  const float norm = sqrtf(squares) * SLACK + NORM_FLOOR;
  const float rounding = sqrtf(residual_squares) * SLACK + UNIT * norm + NORM_FLOOR;
  RowBound b;
  b.slope = SLACK * 2.0f * (rounding + accumulation_bound(dim) * (norm + rounding));
  b.slant = SLACK * 2.0f * norm;
  if (halves) b.slope += 0x1p-29f;  // the product of the low halves, which is left out
  return b;
}

}  // namespace saec
