// Pieces of memory that pass through two buffers by asynchronous copies; each thread reads what its
// neighbour copied.
#include "port.cuh"

struct Ring {  // parameters
  const uint32* pieces;  // IN  (n_pieces, 4 * block)
  uint32* passed;        // OUT (n_pieces, 4 * block) words of each piece, moved by one thread
  int32 n_pieces;
};

enum class Mistake {
  none,
  late_wait,       // waits for one group too few
  unsynced_wait,   // no barrier between the wait and the neighbour's read
  unsynced_reuse,  // no barrier between the read and the next copy into the buffer
  misaligned,      // copies from an address between words of 16 bytes
};

constexpr int most_threads = 64;

template <Mistake mistake>
__device__ void pass(const Ring& p) {
  SAEC_STATIC_SHARED(uint32, buffers, [2][4 * most_threads]);
  const int thread = static_cast<int>(threadIdx.x);
  const int neighbour = (thread + 1) % static_cast<int>(blockDim.x);
  const int piece_words = 4 * static_cast<int>(blockDim.x);
  const int shift = mistake == Mistake::misaligned ? 1 : 0;
  saec::copy_async16(&buffers[0][4 * thread], p.pieces + 4 * thread);
  saec::copy_async_commit();
  for (int piece = 0; piece < p.n_pieces; piece++) {
    if (piece + 1 < p.n_pieces) {
      saec::copy_async16(&buffers[(piece + 1) % 2][4 * thread],
                         p.pieces + (piece + 1) * piece_words + 4 * thread - shift);
    }
    saec::copy_async_commit();
    if (mistake == Mistake::late_wait) {
      saec::copy_async_wait<2>();
    } else {
      saec::copy_async_wait<1>();
    }
    if (mistake != Mistake::unsynced_wait) __syncthreads();
    for (int i = 0; i < 4; i++) {
      p.passed[piece * piece_words + 4 * thread + i] = buffers[piece % 2][4 * neighbour + i];
    }
    if (mistake != Mistake::unsynced_reuse) __syncthreads();
  }
}

#define RING(name, mistake)                                                                 \
  SAEC_KERNEL void __launch_bounds__(most_threads) name(const Ring p) { pass<mistake>(p); } \
  SAEC_EXPORT(name)

#ifndef SAEC_ONE_KERNEL
RING(ring, Mistake::none)
RING(ring_late_wait, Mistake::late_wait)
RING(ring_unsynced_wait, Mistake::unsynced_wait)
RING(ring_unsynced_reuse, Mistake::unsynced_reuse)
RING(ring_misaligned, Mistake::misaligned)
#endif
