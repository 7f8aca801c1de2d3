// recheck - codes of the rows that the filter left open, by finer products and then by definition.
//   code[i] = argmin_k dist(x_i, c_k) of every UNPROVED row; their sums; distances of all rows
// launch  grid = n_runs, block = up to 128, one block = one run; shared = 16 codes a warp and, with
//         `products`, a tile of both halves
// in      runs slots scales centres values weights fragments fragments_low keys bounds order words
//         column_scales weight_scales accumulate everything products
// inout   codes sums sums_low weight_sums weight_sums_low counts rechecked exact
// out     distances
// needs   a field of dim <= 8 has had both halves in its filter: it goes to the definition at once
// numeric three float16 products (both halves, less the product of the low ones), a proved bound
//         (BOUND.md), then float64 as DEFINITIONS.md says; with everything and
//         without products it is the reference
// cost    per open row: 6 dim k flop on the matrix unit; per row still open: 3 dim k in float64
// source  splitting into halves: Markidis et al., arXiv 1803.04014
#include "accumulate.cuh"
#include "exact.cuh"
#include "looped.cuh"

namespace saec {

struct Recheck {  // parameters
  const int64* runs;             // IN    (n_runs, 5) see RUN_
  const int64* slots;            // IN    (n_slots, 11) see SLOT_
  const float* scales;           // IN    (n_slots)
  const float* centres;          // IN    (n_columns)
  const void* values;            // IN    (n_values) rows, C order
  const double* weights;         // IN    (n_rows), or null where no run is weighted
  const uint32* fragments;       // IN    (groups, steps, 2, 32, 4) of each field
  const uint32* fragments_low;   // IN    the same
  const float* keys;             // IN    (n_groups, 4, 4, 4) see KEYS
  const float* bounds;           // IN    (n_groups, 4, 2) of both halves
  const int32* order;            // IN    (n_groups, 4, 8) codeword at each place, -1 for none
  const float* words;            // IN    (n_words) codewords as they are
  const double* column_scales;   // IN    (n_columns) 2^s_j
  const double* weight_scales;   // IN    (n_slots) 2^t
  uint32* codes;                 // INOUT (n_rows)
  double* distances;             // OUT   (n_rows) of every row to its codeword, or null
  uint64* sums;                  // INOUT (n_words)
  uint64* sums_low;              // INOUT (n_words), or null without a wide field
  uint64* weight_sums;           // INOUT (n_codes)
  uint64* weight_sums_low;       // INOUT (n_codes), or null
  uint64* counts;                // INOUT (n_codes)
  uint64* rechecked;             // INOUT (n_slots) rows that came here
  uint64* exact;                 // INOUT (n_slots) rows that only the definition decided
  int32 accumulate;              // IN    1: add the rows that came here to the sums
  int32 everything;              // IN    1: every row is open, whatever its code
  int32 products;                // IN    0: the definition decides every open row
};

constexpr int32 SLICE = 4096;  // rows looked through at once: a few in a hundred are open

// Decides up to 16 open rows with one warp; `listed` are their numbers within the run.
template <class ROW>
__device__ __forceinline__ int32 decide(const Recheck& p, const Run& run, const Field& field,
                                        const uint32* listed, int64 slice, int32 rows,
                                        uint32* codes, uint32* tile, int32 lane) {
  if (lane < TILE) codes[lane] = UNPROVED;
  __syncwarp();
  if (p.products && field.dim > FOLDED_DIM) {
    int64 row[2];
#pragma unroll
    for (int32 h = 0; h < 2; h++) {
      const int32 at = min(lane / 4 + 8 * h, rows - 1);
      row[h] = run.value + (slice + int64(listed[at])) * field.dim;
    }
    uint32 found[2];
    tile_codes<ROW, true>(p.values, row, field, p.scales[run.slot], p.centres + field.column,
                          packed_of(p, field), p.order, tile, found, lane);
    if ((lane & 3) == 0) {
      codes[lane / 4] = found[0];
      codes[lane / 4 + 8] = found[1];
    }
    __syncwarp();
  }
  int32 open = 0;
  for (int32 i = 0; i < rows; i++) {
    uint32 code = codes[i];
    const int64 row = slice + int64(listed[i]);
    __syncwarp();
    if (code == UNPROVED) {
      code = exact_code<ROW>(p.values, run.value + row * field.dim, p.words, field, lane);
      open++;
    }
    if (lane == 0) {
      codes[i] = code;
      p.codes[run.row + row] = code;
    }
  }
  __syncwarp();
  return open;
}

template <class ROW>
__device__ __forceinline__ void recheck(const Recheck& p) {
  SAEC_DYNAMIC_SHARED(uint32, memory);
  SAEC_STATIC_SHARED(uint32, listed, [SLICE]);
  SAEC_STATIC_SHARED(uint32, n_listed, [1]);
  const Run run = Run::of(p.runs, blockIdx.x);
  const Field field = Field::of(p.slots, run.slot);
  const int32 lane = threadIdx.x % WARP;
  const int32 warp = threadIdx.x / WARP;
  const int32 warps = blockDim.x / WARP;
  uint32* codes = memory + warp * TILE;
  uint32* tile = memory + warps * TILE + warp * tile_words(field.steps, true);

  for (int64 slice = 0; slice < run.rows; slice += SLICE) {
    const int32 rows = int32(min(run.rows - slice, int64(SLICE)));
    if (threadIdx.x == 0) n_listed[0] = 0;
    __syncthreads();
    for (int32 i = threadIdx.x; i < rows; i += blockDim.x) {
      const bool open = p.everything || p.codes[run.row + slice + i] == UNPROVED;
      if (open) listed[atomic_add(n_listed, 1u)] = uint32(i);
    }
    __syncthreads();
    const int32 n = int32(n_listed[0]);
    for (int32 first = warp * TILE; first < n; first += warps * TILE) {
      const int32 some = min(n - first, TILE);
      const int32 open =
          decide<ROW>(p, run, field, listed + first, slice, some, codes, tile, lane);
      if (lane == 0) {
        atomic_add(p.rechecked + run.slot, uint64(some));
        if (open > 0) atomic_add(p.exact + run.slot, uint64(open));
      }
      if (p.accumulate) {
        for (int32 i = 0; i < some; i++) {
          const int64 row = slice + int64(listed[first + i]);
          add_rows<ROW>(p, field, run.value + row * field.dim,
                        run.weight < 0 ? -1 : run.weight + row, codes + i, 1, SharedSums{}, lane);
        }
      }
      __syncwarp();
    }
    __syncthreads();  // codes of this slice are whole, and the list may be written again
    if (p.distances) {
      for (int32 i = threadIdx.x; i < rows; i += blockDim.x) {
        const int64 row = run.row + slice + i;
        const int64 word = field.word + int64(p.codes[row]) * field.dim;
        p.distances[row] = exact_distance<ROW>(p.values, run.value + (slice + i) * field.dim,
                                               p.words, word, field.dim);
      }
    }
  }
}

}  // namespace saec

#define RECHECK(NAME, ROW)                                              \
  SAEC_KERNEL void __launch_bounds__(128, 3) NAME(const saec::Recheck p) { \
    saec::recheck<saec::ROW>(p);                                        \
  }                                                                     \
  SAEC_EXPORT(NAME)

#ifndef SAEC_ONE_KERNEL
RECHECK(recheck_f32, F32)
RECHECK(recheck_f16, F16)
RECHECK(recheck_bf16, BF16)
#endif
