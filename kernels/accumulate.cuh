// accumulate.cuh - add rows to the sums of their codewords, as integers (DEFINITIONS.md B).
//
// Integer sums do not depend on order, so any number of blocks may add at once. Shared memory has no
// native 64-bit addition (it is a compare-and-swap loop on every architecture), so a sum there is
// two words: the low one is added first, and whoever sees it wrap adds one to the high one.
#pragma once
#include "fields.cuh"

namespace saec {

// The sums of one field in shared memory; `low` is null where they are added to global memory.
struct SharedSums {
  uint32 *low, *high;                // (codewords, dim)
  uint32 *weight_low, *weight_high;  // (codewords)
  uint32* counts;                    // (codewords)

  static __device__ __forceinline__ int32 words(const Field& f) {
    return f.shared ? 2 * f.codewords * f.dim + 3 * f.codewords : 0;
  }

  static __device__ __forceinline__ SharedSums at(uint32* memory, const Field& f) {
    if (!f.shared) return {};
    const int32 sums = f.codewords * f.dim;
    uint32* after = memory + 2 * sums;
    return {memory, memory + sums, after, after + f.codewords, after + 2 * f.codewords};
  }

  static __device__ __forceinline__ void add(uint32* low, uint32* high, int32 at, int64 term) {
    const uint32 addend = uint32(term);
    const uint32 before = atomic_add(low + at, addend);
    const uint32 carried = uint32(term >> 32) + (before + addend < before ? 1u : 0u);
    if (carried != 0) atomic_add(high + at, carried);
  }
};

// Adds a whole float64 as high * 2^32 + low, 0 <= low < 2^32.
__device__ __forceinline__ void add_limbs(uint64* high, uint64* low, int64 at, double term) {
  const double limb = floor(mul_rn(term, 0x1p-32));
  atomic_add(high + at, uint64(rint_int64(limb)));
  atomic_add(low + at, uint64(rint_int64(sub_rn(term, mul_rn(limb, 0x1p32)))));
}

// What one warp adds: rows whose codes lie side by side in `codes`. UNPROVED rows are left out.
template <class ROW, class P>
__device__ __forceinline__ void add_rows(const P& p, const Field& field, int64 first_value,
                                         int64 first_weight, const uint32* codes, int32 rows,
                                         const SharedSums& shared, int32 lane) {
  const bool weighted = first_weight >= 0;
  const double weight_scale = load_cached(p.weight_scales + field.slot);
  for (int32 row = lane; row < rows; row += WARP) {
    const uint32 code = codes[row];
    if (code == UNPROVED) continue;
    if (shared.counts) {
      atomic_add(shared.counts + code, 1u);
    } else {
      atomic_add(p.counts + field.code + code, uint64(1));
    }
    // unweighted sums of one limb are counts * 2^t: the host knows
    if (!weighted && !field.wide) continue;
    const double weight = weighted ? load_cached(p.weights + first_weight + row) : 1.0;
    const double term = rint(mul_rn(weight, weight_scale));
    if (field.wide) {
      add_limbs(p.weight_sums, p.weight_sums_low, field.code + code, term);
    } else if (shared.counts) {
      SharedSums::add(shared.weight_low, shared.weight_high, int32(code), rint_int64(term));
    } else {
      atomic_add(p.weight_sums + field.code + code, uint64(rint_int64(term)));
    }
  }
  // lanes side by side take values side by side, whatever the dim
  int32 row = lane / field.dim;
  int32 column = lane % field.dim;
  const int32 row_step = WARP / field.dim;
  const int32 column_step = WARP % field.dim;
  while (row < rows) {
    const uint32 code = codes[row];
    if (code != UNPROVED) {
      double x = widened(ROW::value(p.values, first_value + int64(row) * field.dim + column));
      if (weighted) x = mul_rn(x, load_cached(p.weights + first_weight + row));
      const double term = mul_rn(x, load_cached(p.column_scales + field.column + column));
      const int64 at = int64(code) * field.dim + column;
      if (field.wide) {
        add_limbs(p.sums, p.sums_low, field.word + at, rint(term));
      } else if (shared.counts) {
        SharedSums::add(shared.low, shared.high, int32(at), rint_int64(term));
      } else {
        atomic_add(p.sums + field.word + at, uint64(rint_int64(term)));
      }
    }
    row += row_step;
    column += column_step;
    if (column >= field.dim) {
      column -= field.dim;
      row++;
    }
  }
}

// Adds what a block gathered in shared memory to global memory.
template <class P>
__device__ __forceinline__ void flush(const P& p, const Field& field, const SharedSums& shared,
                                      bool weighted) {
  for (int32 i = threadIdx.x; i < field.codewords * field.dim; i += blockDim.x) {
    const uint64 sum = (uint64(shared.high[i]) << 32) | shared.low[i];
    if (sum != 0) atomic_add(p.sums + field.word + i, sum);
  }
  for (int32 k = threadIdx.x; k < field.codewords; k += blockDim.x) {
    if (shared.counts[k] != 0) {
      atomic_add(p.counts + field.code + k, uint64(shared.counts[k]));
    }
    const uint64 sum = (uint64(shared.weight_high[k]) << 32) | shared.weight_low[k];
    if (weighted && sum != 0) atomic_add(p.weight_sums + field.code + k, sum);
  }
}

}  // namespace saec
