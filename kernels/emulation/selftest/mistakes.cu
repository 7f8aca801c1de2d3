// Pairs of small kernels: one that is right, and one with the mistake that its name tells.
#include "port.cuh"

struct Small {  // parameters
  const float* from;  // IN    (n,)
  float* to;          // OUT   (n,)
  uint32* counter;    // INOUT (1,)
  int32 n;
  int32 stride;
};

constexpr uint32 full_warp = 0xFFFFFFFFu;

// Turns the values of a warp round, through shared memory.
template <bool synced>
__device__ void mirror(const Small& p) {
  SAEC_STATIC_SHARED(float, values, [32]);
  const uint32 lane = threadIdx.x;
  values[lane] = p.from[lane];
  if (synced) __syncwarp();
  p.to[lane] = values[31 - lane];
}

// The same by halves of the warp, each with a barrier of its own.
template <bool own_half>
__device__ void mirror_halves(const Small& p) {
  SAEC_STATIC_SHARED(float, values, [32]);
  const uint32 lane = threadIdx.x;
  const uint32 half = lane < 16 ? 0x0000FFFFu : 0xFFFF0000u;
  values[lane] = p.from[lane];
  __syncwarp(half);
  p.to[lane] = values[own_half ? lane ^ 15u : 31 - lane];
}

template <bool whole>
__device__ void copy_shared(const Small& p) {
  SAEC_STATIC_SHARED(float, values, [64]);
  const int thread = static_cast<int>(threadIdx.x);
  if (whole || thread + 1 < p.n) values[thread] = p.from[thread];
  __syncthreads();
  p.to[thread] = values[thread];
}

enum class Barrier { together, in_a_branch, two_places, after_return, endless_wait };

template <Barrier place>
__device__ void meet(const Small& p) {
  const uint32 thread = threadIdx.x;
  if (place == Barrier::after_return && thread >= 16) return;
  if (place == Barrier::two_places && thread < 16) {
    __syncthreads();
  } else if (place != Barrier::in_a_branch || thread < 16) {
    __syncthreads();
  }
  if (place == Barrier::endless_wait && thread < 16) __syncwarp();
  if (place == Barrier::endless_wait && thread >= 16) __syncthreads();
  p.to[thread] = p.from[thread];
}

enum class Lanes { right, two_calls, two_masks, not_named, returned };

// The value of the neighbouring lane.
template <Lanes lanes>
__device__ void swap_neighbours(const Small& p) {
  const uint32 lane = threadIdx.x;
  float value = p.from[lane];
  if (lanes == Lanes::two_calls && lane >= 8) {
    value = __shfl_sync(full_warp, value, static_cast<int>(lane ^ 1u));
  } else if (lanes == Lanes::two_masks) {
    value = __shfl_xor_sync(lane < 8 ? full_warp : full_warp - 1, value, 1);
  } else if (lanes == Lanes::not_named) {
    value = __shfl_xor_sync(0x0000FFFFu, value, 1);
  } else if (lanes == Lanes::returned && lane == 31) {
    return;
  } else {
    value = __shfl_xor_sync(full_warp, value, 1);
  }
  p.to[lane] = value;
}

template <int shift>
__device__ void copy_quads(const Small& p) {
  const Word4 quad = *reinterpret_cast<const Word4*>(p.from + shift + 4 * threadIdx.x);
  *reinterpret_cast<Word4*>(p.to + 4 * threadIdx.x) = quad;
}

// Reads the last value through an index that is a product.
template <class Index>
__device__ void read_far(const Small& p) {
  const Index index = static_cast<Index>(p.stride) * p.n;
  p.to[threadIdx.x] = p.from[static_cast<uint64>(index) % 32];
}

template <bool own>
__device__ void write_cell(const Small& p) {
  p.to[own ? blockIdx.x : 0] = p.from[blockIdx.x];
}

// Each block leaves a value; the last of them adds all up.
template <bool fenced>
__device__ void sum_last(const Small& p) {
  p.to[1 + blockIdx.x] = p.from[blockIdx.x];
  if (fenced) __threadfence();
  if (saec::atomic_add(p.counter, 1u) + 1 != gridDim.x) return;
  float sum = 0.0f;
  for (uint32 block = 0; block < gridDim.x; block++) sum += p.to[1 + block];
  p.to[0] = sum;
}

enum class Count { atomic, plain, past_end };

// Counts the threads of the block, in the one word that the launch gives.
template <Count how>
__device__ void count(const Small& p) {
  SAEC_DYNAMIC_SHARED(uint32, counts);
  if (threadIdx.x == 0) counts[0] = 0;
  __syncthreads();
  if (how == Count::plain) {
    counts[0] = counts[0] + 1;
  } else {
    saec::atomic_add(counts, 1u);
  }
  __syncthreads();
  const uint32 at = how == Count::past_end ? threadIdx.x % 2 : 0;
  p.to[threadIdx.x] = static_cast<float>(counts[at]);
}

template <int floats>
__device__ void hold(const Small& p) {
  SAEC_STATIC_SHARED(float, held, [floats]);
  held[threadIdx.x] = p.from[threadIdx.x];
  p.to[threadIdx.x] = held[threadIdx.x];
}

#define SMALL(name, ...)                                                         \
  SAEC_KERNEL void __launch_bounds__(64) name(const Small p) { __VA_ARGS__(p); } \
  SAEC_EXPORT(name)

#ifndef SAEC_ONE_KERNEL
SMALL(mirror_synced, mirror<true>)
SMALL(mirror_unsynced, mirror<false>)
SMALL(halves_own, mirror_halves<true>)
SMALL(halves_other, mirror_halves<false>)
SMALL(copy_whole, copy_shared<true>)
SMALL(copy_partly, copy_shared<false>)
SMALL(meet_together, meet<Barrier::together>)
SMALL(meet_in_a_branch, meet<Barrier::in_a_branch>)
SMALL(meet_two_places, meet<Barrier::two_places>)
SMALL(meet_after_return, meet<Barrier::after_return>)
SMALL(meet_endless_wait, meet<Barrier::endless_wait>)
SMALL(swap_right, swap_neighbours<Lanes::right>)
SMALL(swap_two_calls, swap_neighbours<Lanes::two_calls>)
SMALL(swap_two_masks, swap_neighbours<Lanes::two_masks>)
SMALL(swap_not_named, swap_neighbours<Lanes::not_named>)
SMALL(swap_returned, swap_neighbours<Lanes::returned>)
SMALL(quads_aligned, copy_quads<0>)
SMALL(quads_misaligned, copy_quads<1>)
SMALL(far_int64, read_far<int64>)
SMALL(far_int32, read_far<int32>)
SMALL(cell_own, write_cell<true>)
SMALL(cell_shared, write_cell<false>)
SMALL(sum_fenced, sum_last<true>)
SMALL(sum_unfenced, sum_last<false>)
SMALL(count_atomic, count<Count::atomic>)
SMALL(count_plain, count<Count::plain>)
SMALL(count_past_end, count<Count::past_end>)
SMALL(hold_some, hold<64>)
SMALL(hold_too_much, hold<12289>)
#endif
