// Accesses of every width and pattern, whose wavefronts and sectors can be told by hand.
#include "port.cuh"

struct Accesses {  // parameters
  const float* from;  // IN    (33 * 32 + 1,)
  float* to;          // OUT   (32 * 32,)
  uint32* counter;    // INOUT (33 * 32 + 1,)
  int32 stride;       // from one lane to the next, in units of the access; at most 33
  int32 shift;        // of the first lane, in floats of global memory; at most 1
};

constexpr int32 warp = 32;
constexpr int32 most_stride = 33;

__device__ void access(const Accesses& p) {
  SAEC_STATIC_SHARED(uint32, words, [4 * most_stride * warp]);
  SAEC_STATIC_SHARED(uint32, counts, [most_stride * warp]);
  const int32 lane = static_cast<int32>(threadIdx.x);
  const int32 at = p.stride * lane;
  const float value = p.from[p.shift + at];
  const uint32 word = words[at];
  const Word2 pair = reinterpret_cast<const Word2*>(words)[at];
  const Word4 quad = reinterpret_cast<const Word4*>(words)[at];
  saec::atomic_add(counts + at, 1u);
  saec::atomic_add(p.counter + p.shift + at, 1u);
  const uint32 sum = word + pair.x + pair.y + quad.x + quad.y + quad.z + quad.w;
  p.to[lane] = value + static_cast<float>(sum);
}

// Turns a square of values round; `pitch` is from one line of the tile to the next.
template <int32 pitch>
__device__ void transpose(const Accesses& p) {
  SAEC_STATIC_SHARED(float, tile, [warp][pitch]);
  const int32 lane = static_cast<int32>(threadIdx.x);
  for (int32 i = 0; i < warp; i++) tile[i][lane] = p.from[warp * i + lane];
  __syncwarp();
  for (int32 i = 0; i < warp; i++) p.to[warp * i + lane] = tile[lane][i];
}

// As many accesses as the number of the lane, between two meetings of all lanes.
__device__ void access_by_lane(const Accesses& p) {
  const int32 lane = static_cast<int32>(threadIdx.x);
  for (int32 turn = 0; turn < 2; turn++) {
    for (int32 i = 0; i < lane; i++) p.to[warp * i + lane] = p.from[warp * i + lane];
    __syncwarp();
  }
}

#define ACCESSES(name, ...)                                                         \
  SAEC_KERNEL void __launch_bounds__(32) name(const Accesses p) { __VA_ARGS__(p); } \
  SAEC_EXPORT(name)

#ifndef SAEC_ONE_KERNEL
ACCESSES(accesses_strided, access)
ACCESSES(accesses_by_lane, access_by_lane)
ACCESSES(transpose_plain, transpose<warp>)
ACCESSES(transpose_padded, transpose<warp + 1>)
#endif
