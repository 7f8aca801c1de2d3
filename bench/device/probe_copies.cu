// probe_copies - asynchronous copies through shared memory, two groups on their way at once.
//   to[i] = from[i], chunk by chunk of 16 bytes a thread
// launch  grid = any, block = THREADS, one block takes chunks of its own; shared = 0
// in      from chunks
// out     to
// needs   from and to hold grid · chunks · THREADS · 4 words
// numeric none
// cost    16 bytes read and written a thread and chunk
#include "port.cuh"

namespace saec {

struct ProbeCopies {   // parameters
  const uint32* from;  // IN  (grid, chunks, THREADS, 4)
  uint32* to;          // OUT the same
  int32 chunks;        // IN  of each block
};

constexpr int32 THREADS = 128;

__device__ __forceinline__ void probe_copies_block(const ProbeCopies& p) {
  SAEC_STATIC_SHARED(uint32, held, [2][THREADS * 4]);
  const int64 first = int64(blockIdx.x) * p.chunks * THREADS;
  const auto begin = [&](int32 chunk) {
    if (chunk < p.chunks) {
      const int64 at = (first + int64(chunk) * THREADS + threadIdx.x) * 4;
      copy_async16(held[chunk % 2] + threadIdx.x * 4, p.from + at);
    }
    copy_async_commit();  // also without a copy, so that there are always two groups
  };
  begin(0);
  for (int32 chunk = 0; chunk < p.chunks; chunk++) {
    begin(chunk + 1);
    copy_async_wait<1>();
    __syncthreads();
    // what another thread copied, so that the barrier matters too
    const int32 other = THREADS - 1 - int32(threadIdx.x);
    const int64 at = (first + int64(chunk) * THREADS + other) * 4;
#pragma unroll
    for (int32 i = 0; i < 4; i++) p.to[at + i] = held[chunk % 2][other * 4 + i];
    __syncthreads();
  }
  copy_async_wait<0>();
}

}  // namespace saec

#define PROBE_COPIES(NAME)                                                               \
  SAEC_KERNEL void __launch_bounds__(saec::THREADS) NAME(const saec::ProbeCopies p) {    \
    saec::probe_copies_block(p);                                                         \
  }                                                                                      \
  SAEC_EXPORT(NAME)

#ifndef SAEC_ONE_KERNEL
PROBE_COPIES(probe_copies)
#endif
