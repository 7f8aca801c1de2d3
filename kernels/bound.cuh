// bound.cuh - the constants of the filter's bound; BOUND.md derives each of them.
#pragma once
#include "fields.cuh"

namespace saec {

constexpr float UNIT = 0x1p-24f;   // unit roundoff of float32
constexpr float SLACK = 1.0f + 0x1p-12f;  // products of small terms, and the bound's own roundings
constexpr float NORM_FLOOR = 0x1p-56f;    // squares below 2^-126 that are flushed to zero
constexpr float WORST = 3e38f;            // the key of a place without a codeword
// The lowest bits of a key name its group within a window of codewords, or an earlier window.
constexpr int32 WINDOW_GROUPS = 32;
constexpr uint32 EARLIER = WINDOW_GROUPS;
constexpr uint32 TAG_MASK = 2 * WINDOW_GROUPS - 1;

// The columns that are multiplied.
__device__ __forceinline__ int32 padded_columns(int32 dim) {
  return dim <= FOLDED_DIM ? FOLDED_DIM : (dim + STEP - 1) / STEP * STEP;
}

// What adding beside a product of subnormal float16 cuts off, for each column (BOUND.md 4): of the
// row's norm, of the chunk's, and whatever these are.
constexpr float LOWEST_OF_ROW = 0x1p-36f;
constexpr float LOWEST_OF_CHUNK = 0x1p-34f;
constexpr float LOWEST = 0x1p-49f;

// kappa: what accumulating a key, tagging it and shifting it by its bound may add, relative to
// |c|² + 2|x||c|.
__device__ __forceinline__ float accumulation_bound(int32 dim) {
  return float(3 * padded_columns(dim) + 140) * 0x1p-23f;
}

// What a row adds to the bound of each chunk: slope * (the chunk's norm) + slant * (its rounding).
struct RowBound {
  float slope, slant;

  // What the definition's own roundings in float64 may add, and what has neither norm in it.
  __device__ __forceinline__ float floor(int32 dim) const {
    return float(dim + 4) * 0x1p-54f * slant * slant + float(padded_columns(dim)) * LOWEST;
  }
};

// From Σ y² and Σ (y - ŷ)² over a whole row.
__device__ __forceinline__ RowBound row_bound(float squares, float residual_squares, int32 dim) {
  const float norm = sqrtf(squares) * SLACK + NORM_FLOOR;
  const float rounding = sqrtf(residual_squares) * SLACK + UNIT * norm + NORM_FLOOR;
  RowBound b;
  b.slope = SLACK * 2.0f * (rounding + accumulation_bound(dim) * (norm + rounding)) +
            float(padded_columns(dim)) * LOWEST_OF_CHUNK;
  b.slant = SLACK * 2.0f * norm;
  return b;
}

}  // namespace saec
