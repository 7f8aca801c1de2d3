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

// kappa: what adding up a key, tagging it and shifting it by its bound may add (BOUND.md 5). Where
// a key is one chain of products and sums from its start, relative to n² + 2(N + ρ)n.
__device__ __forceinline__ float chained_bound(int32 dim) {
  return float(3 * padded_columns(dim) + 72) * 0x1p-23f;
}

// Where each step of 16 columns is added up by itself, then their sums, then the start, and no tag
// is: relative to 2(N + ρ)n, and to n².
__device__ __forceinline__ float stepwise_bound(int32 dim) {
  return (float(padded_columns(dim)) / 32.0f + 36.0f) * 0x1p-23f;
}
constexpr float STEPWISE_KEY = 4.0f * 0x1p-23f;

// As code_of adds up the keys of the winner's chunk: relative to n² + 2(N + ρ)n.
__device__ __forceinline__ float winner_bound(int32 dim) {
  return (float(padded_columns(dim)) / 8.0f + 8.0f) * 0x1p-23f;
}

// What a row adds to the bound of each chunk: slope * (the chunk's norm) + slant * (its rounding),
// where keys are added up as the filter does.
struct RowBound {
  float slope, slant;

  // What the definition's own roundings in float64 may add, and what has neither norm in it.
  __device__ __forceinline__ float floor(int32 dim) const {
    return float(dim + 4) * 0x1p-54f * slant * slant + float(padded_columns(dim)) * LOWEST;
  }
};

// From Σ y² and Σ (y - ŷ)² over a whole row, and the kappa of its keys.
__device__ __forceinline__ RowBound row_bound(float squares, float residual_squares, int32 dim,
                                              float kappa) {
  const float norm = sqrtf(squares) * SLACK + NORM_FLOOR;
  const float rounding = sqrtf(residual_squares) * SLACK + UNIT * norm + NORM_FLOOR;
  RowBound b;
  b.slope = SLACK * 2.0f * (rounding + kappa * (norm + rounding)) +
            float(padded_columns(dim)) * LOWEST_OF_CHUNK;
  b.slant = SLACK * 2.0f * norm;
  return b;
}

}  // namespace saec
