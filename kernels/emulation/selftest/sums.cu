// Counts and sums by atomics, and the order in which blocks and threads come to them.
#include "port.cuh"

struct Sums {  // parameters
  const int32* values;  // IN    (n,) from 0 to n_bins − 1
  int32 n;
  int32 n_bins;
  uint32* counts;  // INOUT (n_bins,)
  uint64* sums;    // INOUT (n_bins,) of the places of each value
  uint32* turns;   // OUT   (grid * block,) thread, within the grid, that came at that turn
  uint32* turn;    // INOUT (1,)
};

__device__ void add_up(const Sums& p) {
  SAEC_DYNAMIC_SHARED(uint32, counts);
  for (int bin = static_cast<int>(threadIdx.x); bin < p.n_bins;
       bin += static_cast<int>(blockDim.x)) {
    counts[bin] = 0;
  }
  const uint32 thread = blockIdx.x * blockDim.x + threadIdx.x;
  p.turns[saec::atomic_add(p.turn, 1u)] = thread;
  __syncthreads();
  p.turns[saec::atomic_add(p.turn, 1u)] = thread;
  for (int64 i = thread; i < p.n; i += gridDim.x * blockDim.x) {
    const int32 value = p.values[i];
    saec::atomic_add(counts + value, 1u);
    saec::atomic_add(p.sums + value, static_cast<uint64>(i));
  }
  __syncthreads();
  for (int bin = static_cast<int>(threadIdx.x); bin < p.n_bins;
       bin += static_cast<int>(blockDim.x)) {
    saec::atomic_add(p.counts + bin, counts[bin]);
  }
}

#define SUMS(name, body)                                                 \
  SAEC_KERNEL void __launch_bounds__(96) name(const Sums p) { body(p); } \
  SAEC_EXPORT(name)

#ifndef SAEC_ONE_KERNEL
SUMS(sums, add_up)
#endif
