// assign_update - nearest codeword of each row within its field, and the sums of its rows.
//   code[i] = argmin_k dist(x_i, c_k) where the filter proves it, else UNPROVED (recheck.cu decides);
//   sums[code][j] += rint(w x_j 2^s_j), weight_sums[code] += rint(w 2^t), counts[code] += 1
// launch  grid = n_runs, block = 256 (assign_update_any: up to 128), one block = one run = rows of one
//         field; shared = `Held` below and the sums, as backends/cuda_plan.py counts them
// in      runs slots scales centres values weights fragments fragments_low keys bounds order
//         column_scales weight_scales find accumulate window
// inout   codes sums sums_low weight_sums weight_sums_low counts
// needs   with find: dim of the field within the kernel's class, window <= 32 groups; rows of a run
//         < 2^31
// numeric float16 products, float32 sums, a proved bound (BOUND.md); sums in float64 and int64, every
//         operation rounded on its own
// cost    per row: dim values read, 4 B written, 2 dim k flop on the matrix unit, 1.4 k on the ALU
// source  the certified filter is ours; matrix products with the minimum in registers as in
//         flash-kmeans (arXiv 2603.09229) and FlashAttention (arXiv 2205.14135)
// history registers and shared memory, windows of 32 groups
#include "accumulate.cuh"
#include "looped.cuh"

namespace saec {

struct AssignUpdate {  // parameters
  const int64* runs;             // IN    (n_runs, 5) see RUN_
  const int64* slots;            // IN    (n_slots, 11) see SLOT_
  const float* scales;           // IN    (n_slots) power of two that brings codewords to order 2^6
  const float* centres;          // IN    (n_columns) subtracted from scaled rows
  const void* values;            // IN    (n_values) rows, C order
  const double* weights;         // IN    (n_rows), or null where no run is weighted
  const uint32* fragments;       // IN    (groups, steps, 2, 32, 4) of each field
  const uint32* fragments_low;   // IN    the same
  const float* keys;             // IN    (n_groups, 4, 4, 4) see KEYS
  const float* bounds;           // IN    (n_groups, 4, 2); of both halves in the class of 8
  const int32* order;            // IN    (n_groups, 4, 8) codeword at each place, -1 for none
  const double* column_scales;   // IN    (n_columns) 2^s_j
  const double* weight_scales;   // IN    (n_slots) 2^t
  uint32* codes;                 // INOUT (n_rows) read without `find`, else written
  uint64* sums;                  // INOUT (n_words) high limbs of wide fields
  uint64* sums_low;              // INOUT (n_words), or null without a wide field
  uint64* weight_sums;           // INOUT (n_codes)
  uint64* weight_sums_low;       // INOUT (n_codes), or null
  uint64* counts;                // INOUT (n_codes)
  int32 find;                    // IN    1: find codes; 0: they are given
  int32 accumulate;              // IN    1: add rows to the sums of their codewords
  int32 window;                  // IN    groups of codewords in shared memory at once
};

constexpr int32 WARPS = 8;
constexpr int32 MOST_TILES = 4;

// sm_75 multiplies 8 columns at a time, which takes more registers: with more tiles they spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
template <int32 TILES, int32 STEPS>
constexpr int32 FITTING = STEPS == 1 && TILES > 1 ? 2 : 1;
#else
template <int32 TILES, int32 STEPS>
constexpr int32 FITTING = TILES;
#endif

// The dynamic shared memory of a block, in this order; each part starts at 16 bytes.
template <int32 STEPS, bool FOLDED>
struct Held {
  uint32 *fragments, *fragments_low;
  float *keys, *bounds, *centre;
  uint32* codes;  // of one warp
  uint32* sums;

  static __device__ __forceinline__ Held at(uint32* memory, int32 window, int32 warp) {
    Held h;
    h.fragments = memory;
    h.fragments_low = h.fragments + window * STEPS * STEP_WORDS;
    h.keys = reinterpret_cast<float*>(h.fragments_low + (FOLDED ? window * STEP_WORDS : 0));
    h.bounds = h.keys + window * KEYS;
    h.centre = h.bounds + window * 4 * 2;
    uint32* codes = reinterpret_cast<uint32*>(h.centre + STEPS * STEP);
    h.codes = codes + warp * MOST_TILES * TILE;
    h.sums = codes + WARPS * MOST_TILES * TILE;
    return h;
  }

  // Copies groups first .. first + groups to the start of the window, by the whole block.
  __device__ __forceinline__ void stage(const Packed& packed, int32 first, int32 groups) const {
    copy(fragments, packed.fragments + int64(first) * STEPS * STEP_WORDS,
         groups * STEPS * STEP_WORDS);
    if (FOLDED) {
      copy(fragments_low, packed.fragments_low + int64(first) * STEP_WORDS, groups * STEP_WORDS);
    }
    copy(keys, packed.keys + int64(first) * KEYS, groups * KEYS);
    copy(bounds, packed.bounds + int64(first) * 4 * 2, groups * 4 * 2);
    copy_async_commit();
    copy_async_wait<0>();
  }

  __device__ __forceinline__ Packed packed() const {
    return {fragments, fragments_low, keys, bounds};
  }

 private:
  template <class T>
  static __device__ __forceinline__ void copy(T* to, const T* from, int32 words) {
    for (int32 i = 4 * threadIdx.x; i < words; i += 4 * blockDim.x) copy_async16(to + i, from + i);
  }
};

// The tiles of 16 rows that one warp holds in registers.
template <int32 STEPS, int32 TILES, bool FOLDED>
struct Tiles {
  uint32 a[TILES][STEPS][4];
  uint32 low[FOLDED ? TILES : 1][4];  // folded: high halves of the row, then its low halves
  RowBound bound[TILES][2];
  Best best[TILES][2];

  template <class ROW>
  __device__ __forceinline__ void load(const void* values, int64 first_value, int32 rows,
                                       const Field& field, float scale, const float* centre,
                                       int32 lane) {
#pragma unroll
    for (int32 m = 0; m < TILES; m++) {
      RowSums sums[2];
#pragma unroll
      for (int32 s = 0; s < STEPS; s++) {
        if (STEPS > 8 && s % 2 == 0) __syncwarp();  // as in code_of
#pragma unroll
        for (int32 i = 0; i < 4; i++) {
          // rows past the last repeat it
          const int32 row = min(m * TILE + lane / 4 + 8 * (i % 2), rows - 1);
          const int32 column = STEP * s + 8 * (i / 2) + 2 * (lane & 3);
          if (FOLDED && i >= 2) {
            a[m][s][i] = 0;
            continue;
          }
          uint32 rest;
          framed<ROW, FOLDED>(values, first_value + int64(row) * field.dim, column, field.dim,
                              scale, centre, sums[i % 2], a[m][s][i], rest);
          if (FOLDED) {
            low[m][i] = a[m][s][i];
            low[m][i + 2] = rest;
          }
        }
      }
#pragma unroll
      for (int32 h = 0; h < 2; h++) {
        bound[m][h] = row_bound(quad_sum(sums[h].squares), quad_sum(sums[h].residual_squares),
                                field.dim, chained_bound(field.dim));
        best[m][h].clear();
      }
    }
  }

  // Looks at the window's groups; `first` is the number of the first one in the field.
  __device__ __forceinline__ void scan(const Packed& packed, int32 first, int32 groups,
                                       int32 lane) {
    const float4* keys = reinterpret_cast<const float4*>(packed.keys) + (lane & 3);
    const float2* bounds = reinterpret_cast<const float2*>(packed.bounds) + (lane & 3);
    const uint4* fragments = reinterpret_cast<const uint4*>(packed.fragments) + lane;
    const uint4* fragments_low = reinterpret_cast<const uint4*>(packed.fragments_low) + lane;
#pragma unroll 1
    for (int32 g = 0; g < groups; g++) {
      const float2 chunk = bounds[g * 4];
      float least[TILES][2];
#pragma unroll
      for (int32 pair = 0; pair < 2; pair++) {
        uint4 e[STEPS];
#pragma unroll
        for (int32 s = 0; s < STEPS; s++) e[s] = fragments[((g * STEPS + s) * 2 + pair) * WARP];
        uint4 r = {};
        if (FOLDED) r = fragments_low[(g * 2 + pair) * WARP];
        float start[2][4];
#pragma unroll
        for (int32 i = 0; i < 2; i++) {
          const float4 four = keys[(g * 4 + 2 * pair + i) * 4];
          start[i][0] = four.x;
          start[i][1] = four.y;
          start[i][2] = four.z;
          start[i][3] = four.w;
        }
#pragma unroll
        for (int32 m = 0; m < TILES; m++) {
          float d[2][4];
          if (FOLDED) {
            // The small products first, so that they are added up at their own scale (BOUND.md).
            float small[2][4] = {};
            mma_f16(small[0], low[m], r.x, r.y);
            mma_f16(small[1], low[m], r.z, r.w);
#pragma unroll
            for (int32 i = 0; i < 8; i++) small[i / 4][i % 4] += start[i / 4][i % 4];
            mma_f16(d[0], a[m][0], e[0].x, e[0].y, small[0]);
            mma_f16(d[1], a[m][0], e[0].z, e[0].w, small[1]);
          } else {
            mma_f16(d[0], a[m][0], e[0].x, e[0].y, start[0]);
            mma_f16(d[1], a[m][0], e[0].z, e[0].w, start[1]);
          }
#pragma unroll
          for (int32 s = 1; s < STEPS; s++) {
            mma_f16(d[0], a[m][s], e[s].x, e[s].y);
            mma_f16(d[1], a[m][s], e[s].z, e[s].w);
          }
#pragma unroll
          for (int32 h = 0; h < 2; h++) {
            // a chain: sm_100 takes the least of three at once
            float l = fminf(d[0][2 * h], d[0][2 * h + 1]);
            if (pair > 0) l = fminf(fminf(least[m][h], d[0][2 * h]), d[0][2 * h + 1]);
            least[m][h] = fminf(fminf(l, d[1][2 * h]), d[1][2 * h + 1]);
          }
        }
      }
#pragma unroll
      for (int32 m = 0; m < TILES; m++) {
#pragma unroll
        for (int32 h = 0; h < 2; h++) {
          const float shifted = fmaf(-bound[m][h].slope, chunk.x, least[m][h]);
          best[m][h].take(tagged(fmaf(-bound[m][h].slant, chunk.y, shifted), uint32(g)));
        }
      }
    }
#pragma unroll
    for (int32 m = 0; m < TILES; m++) {
#pragma unroll
      for (int32 h = 0; h < 2; h++) {
        const uint32 tag = __float_as_uint(best[m][h].best) & TAG_MASK;
        if (tag < EARLIER) best[m][h].group = first + int32(tag);
        best[m][h].best = tagged(best[m][h].best, EARLIER);
      }
    }
  }

  // Writes the rows' codes to `codes`; `packed` holds the field's groups from its first.
  __device__ __forceinline__ void decide(const Packed& packed, const int32* order,
                                         const Field& field, uint32* codes, int32 lane) {
#pragma unroll
    for (int32 m = 0; m < TILES; m++) {
#pragma unroll
      for (int32 h = 0; h < 2; h++) {
        best[m][h].reduce(lane);
        const auto y = [&](int32 s, int32 q, bool rest) {
          return rest ? low[FOLDED ? m : 0][2 + h] : a[m][s][2 * q + h];
        };
        const uint32 code = code_of<FOLDED, STEPS>(best[m][h], best[m][h].group / 4, packed, order,
                                                   field, bound[m][h], chained_bound(field.dim),
                                                   lane, STEPS, y);
        if ((lane & 3) == 0) codes[m * TILE + 8 * h + lane / 4] = code;
      }
    }
  }
};

// Dims up to STEPS * 16; up to 8 where FOLDED.
template <class ROW, int32 STEPS, int32 TILES, bool FOLDED>
__device__ __forceinline__ void assign_update(const AssignUpdate& p) {
  SAEC_DYNAMIC_SHARED(uint32, memory);
  // in shared memory, so that they do not take registers through the scan
  SAEC_STATIC_SHARED(Run, run_of_block, [1]);
  SAEC_STATIC_SHARED(Field, field_of_block, [1]);
  if (threadIdx.x == 0) {
    run_of_block[0] = Run::of(p.runs, blockIdx.x);
    field_of_block[0] = Field::of(p.slots, run_of_block[0].slot);
  }
  __syncthreads();
  const Run& run = run_of_block[0];
  const Field& field = field_of_block[0];
  const int32 lane = threadIdx.x % WARP;
  const int32 warp = threadIdx.x / WARP;
  const auto held = Held<STEPS, FOLDED>::at(memory, p.window, warp);
  const SharedSums shared = SharedSums::at(held.sums, field);
  const Packed packed = packed_of(p, field);
  const bool resident = field.groups <= p.window;
  const float scale = p.scales[run.slot];

  if (p.find) {
    for (int32 j = threadIdx.x; j < field.dim; j += blockDim.x) {
      held.centre[j] = p.centres[field.column + j];
    }
    if (resident) held.stage(packed, 0, field.groups);
  }
  if (p.accumulate) {
    for (int32 i = threadIdx.x; i < SharedSums::words(field); i += blockDim.x) held.sums[i] = 0;
  }
  __syncthreads();

  constexpr int32 WARP_ROWS = TILES * TILE;
  const int32 run_rows = int32(run.rows);  // a run is cut long before 2^31 rows
  for (int32 start = 0; start < run_rows; start += WARPS * WARP_ROWS) {
    const int64 first = start + warp * WARP_ROWS;
    const int32 rows = max(min(run_rows - int32(first), WARP_ROWS), 0);
    if (p.find) {
      Tiles<STEPS, TILES, FOLDED> tiles;
      if (rows > 0) {
        tiles.template load<ROW>(p.values, run.value + first * field.dim, rows, field, scale,
                                 held.centre, lane);
      }
      if (resident) {
        if (rows > 0) {
          tiles.scan(held.packed(), 0, field.groups, lane);
          tiles.decide(held.packed(), p.order, field, held.codes, lane);
        }
      } else {
        for (int32 base = 0; base < field.groups; base += p.window) {
          const int32 groups = min(p.window, field.groups - base);
          __syncthreads();  // the window before this one is done with
          held.stage(packed, base, groups);
          __syncthreads();
          if (rows > 0) tiles.scan(held.packed(), base, groups, lane);
        }
        if (rows > 0) tiles.decide(packed, p.order, field, held.codes, lane);
      }
      __syncwarp();
      for (int32 i = lane; i < rows; i += WARP) p.codes[run.row + first + i] = held.codes[i];
    } else {
      for (int32 i = lane; i < rows; i += WARP) held.codes[i] = p.codes[run.row + first + i];
      __syncwarp();
    }
    if (p.accumulate) {
      const int64 weight = run.weight < 0 ? -1 : run.weight + first;
      add_rows<ROW>(p, field, run.value + first * field.dim, weight, held.codes, rows, shared,
                    lane);
    }
    __syncwarp();  // codes are read; the next rows' may be written
  }
  if (p.accumulate && shared.counts) {
    __syncthreads();
    flush(p, field, shared, run.weight >= 0);
  }
}

// Any dim: rows in shared memory, codewords from global memory.
template <class ROW>
__device__ __forceinline__ void assign_update_looped(const AssignUpdate& p) {
  SAEC_DYNAMIC_SHARED(uint32, memory);
  const Run run = Run::of(p.runs, blockIdx.x);
  const Field field = Field::of(p.slots, run.slot);
  const int32 lane = threadIdx.x % WARP;
  const int32 warp = threadIdx.x / WARP;
  const int32 warps = blockDim.x / WARP;
  uint32* codes = memory + warp * TILE;
  uint32* tile = memory + warps * TILE + warp * tile_words(field.steps, false);
  const Packed packed = packed_of(p, field);

  for (int64 first = int64(warp) * TILE; first < run.rows; first += int64(warps) * TILE) {
    const int32 rows = int32(min(run.rows - first, int64(TILE)));
    if (p.find) {
      int64 row[2];
#pragma unroll
      for (int32 h = 0; h < 2; h++) {
        row[h] = run.value + (first + min(lane / 4 + 8 * h, rows - 1)) * field.dim;
      }
      uint32 found[2];
      tile_codes<ROW, false>(p.values, row, field, p.scales[run.slot], p.centres + field.column,
                             packed, p.order, tile, found, lane);
      if ((lane & 3) == 0) {
        codes[lane / 4] = found[0];
        codes[lane / 4 + 8] = found[1];
      }
      __syncwarp();
      if (lane < rows) p.codes[run.row + first + lane] = codes[lane];
    } else {
      if (lane < rows) codes[lane] = p.codes[run.row + first + lane];
      __syncwarp();
    }
    if (p.accumulate) {
      const int64 weight = run.weight < 0 ? -1 : run.weight + first;
      add_rows<ROW>(p, field, run.value + first * field.dim, weight, codes, rows, SharedSums{},
                    lane);
    }
    __syncwarp();
  }
}

}  // namespace saec

#define ASSIGN_UPDATE(NAME, ROW, STEPS, TILES, FOLDED, BLOCKS)                          \
  SAEC_KERNEL void __launch_bounds__(256, BLOCKS) NAME(const saec::AssignUpdate p) {    \
    saec::assign_update<saec::ROW, STEPS, saec::FITTING<TILES, STEPS>, FOLDED>(p);      \
  }                                                                                     \
  SAEC_EXPORT(NAME)
#define ASSIGN_UPDATE_LOOPED(NAME, ROW)                                                 \
  SAEC_KERNEL void __launch_bounds__(128) NAME(const saec::AssignUpdate p) {            \
    saec::assign_update_looped<saec::ROW>(p);                                           \
  }                                                                                     \
  SAEC_EXPORT(NAME)

#ifndef SAEC_ONE_KERNEL
ASSIGN_UPDATE(assign_update_d8_f32, F32, 1, 3, true, 2)
ASSIGN_UPDATE(assign_update_d8_f16, F16, 1, 3, true, 2)
ASSIGN_UPDATE(assign_update_d8_bf16, BF16, 1, 3, true, 2)
ASSIGN_UPDATE(assign_update_d16_f32, F32, 1, 4, false, 2)
ASSIGN_UPDATE(assign_update_d16_f16, F16, 1, 4, false, 2)
ASSIGN_UPDATE(assign_update_d16_bf16, BF16, 1, 4, false, 2)
ASSIGN_UPDATE(assign_update_d32_f32, F32, 2, 3, false, 2)
ASSIGN_UPDATE(assign_update_d32_f16, F16, 2, 3, false, 2)
ASSIGN_UPDATE(assign_update_d32_bf16, BF16, 2, 3, false, 2)
ASSIGN_UPDATE(assign_update_d64_f32, F32, 4, 2, false, 2)
ASSIGN_UPDATE(assign_update_d64_f16, F16, 4, 2, false, 2)
ASSIGN_UPDATE(assign_update_d64_bf16, BF16, 4, 2, false, 2)
ASSIGN_UPDATE(assign_update_d128_f32, F32, 8, 2, false, 1)
ASSIGN_UPDATE(assign_update_d128_f16, F16, 8, 2, false, 1)
ASSIGN_UPDATE(assign_update_d128_bf16, BF16, 8, 2, false, 1)
ASSIGN_UPDATE(assign_update_d256_f32, F32, 16, 1, false, 1)
ASSIGN_UPDATE(assign_update_d256_f16, F16, 16, 1, false, 1)
ASSIGN_UPDATE(assign_update_d256_bf16, BF16, 16, 1, false, 1)
ASSIGN_UPDATE_LOOPED(assign_update_any_f32, F32)
ASSIGN_UPDATE_LOOPED(assign_update_any_f16, F16)
ASSIGN_UPDATE_LOOPED(assign_update_any_bf16, BF16)
#endif
