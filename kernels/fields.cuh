// fields.cuh - where the rows, codewords and sums of each field lie, and what a row's values are.
#pragma once
#include "port.cuh"

namespace saec {

// A row of `slots` tells where one field's codebook and sums lie in the flat arrays.
constexpr int32 SLOT_FIELDS = 11;
constexpr int32 SLOT_DIM = 0;
constexpr int32 SLOT_CODEWORDS = 1;
constexpr int32 SLOT_WORD = 2;      // first value in words and sums
constexpr int32 SLOT_CODE = 3;      // first entry in counts and weight_sums
constexpr int32 SLOT_COLUMN = 4;    // first entry in centres and column_scales
constexpr int32 SLOT_GROUP = 5;     // first group in keys, order and bounds
constexpr int32 SLOT_GROUPS = 6;
constexpr int32 SLOT_FRAGMENT = 7;  // first word in fragments
constexpr int32 SLOT_WIDE = 8;      // sums in two limbs
constexpr int32 SLOT_SHARED = 9;    // sums are gathered in shared memory first
constexpr int32 SLOT_STEPS = 10;    // products of 16 columns that a row takes

// A row of `runs` is the rows of one field that one block takes.
constexpr int32 RUN_FIELDS = 5;
constexpr int32 RUN_SLOT = 0;
constexpr int32 RUN_ROWS = 1;
constexpr int32 RUN_VALUE = 2;   // first value
constexpr int32 RUN_WEIGHT = 3;  // first weight, or -1: every weight is 1
constexpr int32 RUN_ROW = 4;     // first entry in codes and distances

constexpr uint32 UNPROVED = 0xFFFFFFFFu;  // the code of a row that the filter could not decide
constexpr uint32 FULL_WARP = 0xFFFFFFFFu;
constexpr int32 WARP = 32;

// Codewords stand in groups of 32, ordered by norm; a group is four chunks of 8, one for each lane
// of a quad. A lane sees the keys of its own chunk in the accumulators of four 16 x 8 products.
constexpr int32 GROUP = 32;
constexpr int32 CHUNK = 8;
// The keys of a group as the accumulators of its four blocks of 8 codewords begin: for each block and
// chunk the keys of its two codewords, twice (rows g and g + 8).
constexpr int32 KEYS = 4 * 4 * 4;
constexpr int32 STEP = 16;                   // columns of one product
constexpr int32 STEP_WORDS = GROUP * STEP / 2;  // 32-bit words of a group's float16 in one step
constexpr int32 FOLDED_DIM = 8;  // up to here high and low halves share one step (BOUND.md)

// How rows are stored. Widening is exact: float16's subnormals are normal in float32, and bfloat16
// is the upper half of a float32.
struct F32 {
  static __device__ __forceinline__ float value(const void* values, int64 at) {
    return load_cached(static_cast<const float*>(values) + at);
  }
};
struct F16 {
  static __device__ __forceinline__ float value(const void* values, int64 at) {
    return f16_value(load_cached(static_cast<const uint16*>(values) + at));
  }
};
struct BF16 {
  static __device__ __forceinline__ float value(const void* values, int64 at) {
    return __uint_as_float(uint32(load_cached(static_cast<const uint16*>(values) + at)) << 16);
  }
};

// The field that a run belongs to.
struct Field {
  int32 dim, codewords, groups, steps;
  int64 slot, word, code, column, group, fragment;
  bool wide, shared;

  static __device__ __forceinline__ Field of(const int64* slots, int64 slot) {
    const int64* s = slots + slot * SLOT_FIELDS;
    Field f;
    f.slot = slot;
    f.dim = int32(s[SLOT_DIM]);
    f.codewords = int32(s[SLOT_CODEWORDS]);
    f.groups = int32(s[SLOT_GROUPS]);
    f.steps = int32(s[SLOT_STEPS]);
    f.word = s[SLOT_WORD];
    f.code = s[SLOT_CODE];
    f.column = s[SLOT_COLUMN];
    f.group = s[SLOT_GROUP];
    f.fragment = s[SLOT_FRAGMENT];
    f.wide = s[SLOT_WIDE] != 0;
    f.shared = s[SLOT_SHARED] != 0;
    return f;
  }
};

// The rows of one run.
struct Run {
  int64 slot, rows, value, weight, row;

  static __device__ __forceinline__ Run of(const int64* runs, int64 run) {
    const int64* r = runs + run * RUN_FIELDS;
    return {r[RUN_SLOT], r[RUN_ROWS], r[RUN_VALUE], r[RUN_WEIGHT], r[RUN_ROW]};
  }
};

}  // namespace saec
