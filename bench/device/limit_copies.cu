// limit_copies - what the device's memory gives: one long array copied to another.
// launch  grid = any, block = any; shared = 0; threads take 16 bytes in turn
// in      from words
// out     to
// needs   words is a multiple of 4
// numeric none
// cost    4 bytes read and written a word
#include "port.cuh"

namespace saec {

struct LimitCopies {   // parameters
  const uint32* from;  // IN  (words)
  uint32* to;          // OUT (words)
  int64 words;         // IN
};

__device__ __forceinline__ void copy_all(const LimitCopies& p) {
  const Word4* const from = reinterpret_cast<const Word4*>(p.from);
  Word4* const to = reinterpret_cast<Word4*>(p.to);
  const int64 step = int64(gridDim.x) * blockDim.x;
  for (int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x; i < p.words / 4; i += step) {
    to[i] = from[i];
  }
}

}  // namespace saec

#define LIMIT_COPIES(NAME)                           \
  SAEC_KERNEL void NAME(const saec::LimitCopies p) { \
    saec::copy_all(p);                               \
  }                                                  \
  SAEC_EXPORT(NAME)

#ifndef SAEC_ONE_KERNEL
LIMIT_COPIES(limit_copies)
#endif
