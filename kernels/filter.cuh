// filter.cuh - rank codewords with float16 products, and prove the winner.
//
// A warp takes tiles of 16 rows. mma.sync gives lane 4g+t the keys of rows g and g+8 against columns
// 2t and 2t+1 of each block of 8 codewords; four blocks make a group of 32, in which the lane sees
// the 8 keys of one chunk. Of these it keeps the least, lowered by the chunk's bound: a lower bound
// of every distance in the chunk. Best and second best over all chunks go on in registers; the
// group of the best rides in its lowest bits, so that a minimum moves both (one logic operation
// instead of a comparison and a selection). A row is proved when nothing else can reach the upper
// bound of the best key (BOUND.md).
#pragma once
#include "bound.cuh"

namespace saec {

// The packed codebook of one field, as the scan reads it: in shared or global memory.
struct Packed {
  const uint32* fragments;      // [group][step][pair of blocks][lane][4]: -2 ê as float16
  const uint32* fragments_low;  // the same of e - ê; folded: [low half | high half] in one step
  const float* keys;            // [group][block][chunk][4], see KEYS: |e|² - kappa n²
  const float* bounds;          // [group][chunk][2]: norm n and rounding δ
};

__device__ __forceinline__ float tagged(float key, uint32 tag) {
  return __uint_as_float((__float_as_uint(key) & ~TAG_MASK) | tag);
}

// The best chunk that a row has seen, by lower bound, and the lower bound of the second best.
struct Best {
  float best, second;
  int32 group;  // after `reduce`: the chunk

  __device__ __forceinline__ void clear() {
    second = WORST;
    best = tagged(WORST, EARLIER);
    group = 0;
  }

  __device__ __forceinline__ void take(float bound) {
    second = fminf(second, fmaxf(best, bound));
    best = fminf(best, bound);
  }

  // Merge the four lanes of a quad; each lane saw chunks of its own.
  __device__ __forceinline__ void reduce(int32 lane) {
    group = group * 4 + (lane & 3);
    for (int32 apart = 1; apart <= 2; apart *= 2) {
      const float other = __shfl_xor_sync(FULL_WARP, best, apart);
      const float its_second = __shfl_xor_sync(FULL_WARP, second, apart);
      const int32 its_chunk = __shfl_xor_sync(FULL_WARP, group, apart);
      second = fminf(fminf(second, its_second), fmaxf(best, other));
      if (other < best || (other == best && its_chunk < group)) {
        best = other;
        group = its_chunk;
      }
    }
  }
};

__device__ __forceinline__ float quad_sum(float value) {
  value += __shfl_xor_sync(FULL_WARP, value, 1);
  return value + __shfl_xor_sync(FULL_WARP, value, 2);
}

// One lane's share of a row on its way to fragments: the squares of what it has read.
struct RowSums {
  float squares = 0.0f, residual_squares = 0.0f;
};

// Two neighbouring columns of a row, scaled and centred, as float16 in `high`, and what that leaves
// in `low`. Columns past the last are zero.
template <class ROW, bool HALVES>
__device__ __forceinline__ void framed(const void* values, int64 row, int32 column, int32 dim,
                                       float scale, const float* centre, RowSums& sums,
                                       uint32& high, uint32& low) {
  float left[2] = {0.0f, 0.0f};
  float half[2] = {0.0f, 0.0f};
#pragma unroll
  for (int32 i = 0; i < 2; i++) {
    if (column + i < dim) {
      const float y = fma_rn(ROW::value(values, row + column + i), scale, -centre[column + i]);
      half[i] = f16_value(f16_bits(y));
      left[i] = y - half[i];  // exact, or infinite where float16 overflows
      sums.squares += y * y;
      if (HALVES) {
        const float rest = left[i] - f16_value(f16_bits(left[i]));
        sums.residual_squares += rest * rest;
      } else {
        sums.residual_squares += left[i] * left[i];
      }
    }
  }
  high = f16_pair(half[0], half[1]);
  if (HALVES) low = f16_pair(left[0], left[1]);
}

__device__ __forceinline__ float low_half(uint32 pair) { return f16_value(uint16(pair & 0xFFFFu)); }
__device__ __forceinline__ float high_half(uint32 pair) { return f16_value(uint16(pair >> 16)); }

// Adds the products of two columns, of one codeword, to a key.
__device__ __forceinline__ float with_pair(float key, uint32 y, uint32 e) {
  return fmaf(high_half(y), high_half(e), fmaf(low_half(y), low_half(e), key));
}
__device__ __forceinline__ float with_pair(float key, uint32 y, uint32 y_low, uint32 e,
                                           uint32 e_low) {
  key = fmaf(low_half(y) + low_half(y_low), low_half(e) + low_half(e_low), key);
  return fmaf(high_half(y) + high_half(y_low), high_half(e) + high_half(e_low), key);
}

// Where within a chunk's 8 codewords the best one stands, and what the next one may be.
struct Winner {
  float key, second;
  int32 place;
};

// From each lane's share of the 8 keys of its quad's chunk to the winner, the same in all four.
// `keys` are the chunk's in the first block.
__device__ __forceinline__ Winner winner_of(float (&share)[CHUNK], const float* keys, int32 lane) {
  // Two exchanges leave each lane of the quad with two whole keys.
  const bool upper = (lane & 2) != 0;
  const bool odd = (lane & 1) != 0;
  float four[4];
#pragma unroll
  for (int32 i = 0; i < 4; i++) {
    const float sent = upper ? share[i] : share[i + 4];
    four[i] = (upper ? share[i + 4] : share[i]) + __shfl_xor_sync(FULL_WARP, sent, 2);
  }
  float two[2];
#pragma unroll
  for (int32 i = 0; i < 2; i++) {
    const float sent = odd ? four[i] : four[i + 2];
    two[i] = (odd ? four[i + 2] : four[i]) + __shfl_xor_sync(FULL_WARP, sent, 1);
  }
  const int32 first = (upper ? 4 : 0) + (odd ? 2 : 0);
  two[0] += keys[first / 2 * 16];
  two[1] += keys[first / 2 * 16 + 1];
  Winner w = {fminf(two[0], two[1]), fmaxf(two[0], two[1]), two[1] < two[0] ? first + 1 : first};
  for (int32 apart = 1; apart <= 2; apart *= 2) {
    const float other = __shfl_xor_sync(FULL_WARP, w.key, apart);
    const float its_second = __shfl_xor_sync(FULL_WARP, w.second, apart);
    const int32 its_place = __shfl_xor_sync(FULL_WARP, w.place, apart);
    w.second = fminf(fminf(w.second, its_second), fmaxf(w.key, other));
    if (other < w.key || (other == w.key && its_place < w.place)) {
      w.key = other;
      w.place = its_place;
    }
  }
  return w;
}

// Whether the winner is nearer than every other codeword (BOUND.md); `kappa` is in the row's slope.
// A row or key that is not finite makes the bound NaN or infinite, and nothing is proved.
__device__ __forceinline__ bool proved(const Winner& w, float second_chunk, const RowBound& row,
                                       const float* bound, int32 dim, float kappa) {
  const float norm = bound[0];
  const float slope = row.slope - (kappa - winner_bound(dim)) * row.slant;
  const float rest = winner_bound(dim) * norm * norm;
  const float reach = SLACK * (slope * norm + row.slant * bound[1] + rest);
  const float upper = w.key + reach + SLACK * 2.0f * row.floor(dim);
  // keys start lower than |e|², the bounds of chunks do not
  const float lowered = SLACK * (chained_bound(dim) * norm * norm);
  return upper + lowered < second_chunk && upper < w.second - reach;
}

// The code of a row whose best chunk is known, or UNPROVED; the same in all four lanes of a quad.
// `packed` holds the chunk's group as its group `held`; `kappa` is in the row's slope; y(s, q, low)
// gives the row's columns 16 s + 8 q + {2t, 2t + 1}, high or low halves. STEPS is their number where
// y is in registers, and 0 where only `steps` tells it.
template <bool HALVES, int32 STEPS, class Row>
__device__ __forceinline__ uint32 code_of(const Best& best, int32 held, const Packed& packed,
                                          const int32* order, const Field& field,
                                          const RowBound& row, float kappa, int32 lane,
                                          int32 steps, Row y) {
  const int32 chunk = best.group & 3;
  float share[CHUNK] = {};
#pragma unroll(STEPS > 0 ? STEPS : 1)
  for (int32 s = 0; s < (STEPS > 0 ? STEPS : steps); s++) {
    // loads of later steps are kept from coming early, where their registers would spill
    if (STEPS > 8 && s % 2 == 0) __syncwarp();
#pragma unroll
    for (int32 i = 0; i < 2; i++) {
#pragma unroll
      for (int32 pair = 0; pair < 2; pair++) {
        // lane 4 n + t of a fragment holds columns {2t, 2t + 1} and 8 more of codeword n of a block
        const int32 holder = 4 * (2 * chunk + i) + (lane & 3);
        const int64 at = ((int64(held) * steps + s) * 2 + pair) * WARP + holder;
        const uint4 e = reinterpret_cast<const uint4*>(packed.fragments)[at];
        float& first = share[4 * pair + i];
        float& second = share[4 * pair + 2 + i];
        if (HALVES && field.dim <= FOLDED_DIM) {
          const uint4 low = reinterpret_cast<const uint4*>(packed.fragments_low)[at];
          first = with_pair(first, y(s, 0, false), y(s, 0, true), e.x, low.x);
          second = with_pair(second, y(s, 0, false), y(s, 0, true), e.z, low.z);
        } else if (HALVES) {
          const uint4 low = reinterpret_cast<const uint4*>(packed.fragments_low)[at];
          first = with_pair(first, y(s, 0, false), y(s, 0, true), e.x, low.x);
          first = with_pair(first, y(s, 1, false), y(s, 1, true), e.y, low.y);
          second = with_pair(second, y(s, 0, false), y(s, 0, true), e.z, low.z);
          second = with_pair(second, y(s, 1, false), y(s, 1, true), e.w, low.w);
        } else {
          first = with_pair(with_pair(first, y(s, 0, false), e.x), y(s, 1, false), e.y);
          second = with_pair(with_pair(second, y(s, 0, false), e.z), y(s, 1, false), e.w);
        }
      }
    }
  }
  const int64 at = int64(held) * 4 + chunk;
  const Winner w = winner_of(share, packed.keys + int64(held) * KEYS + chunk * 4, lane);
  if (!proved(w, best.second, row, packed.bounds + at * 2, field.dim, kappa)) {
    return UNPROVED;
  }
  return uint32(order[(field.group * 4 + best.group) * CHUNK + w.place]);
}

}  // namespace saec
