// planted - faults for compute-sanitizer to find, one a kernel; never run by anything else.
//   planted_outside       writes past the end of an array        memcheck
//   planted_race          two warps write one word, no barrier   racecheck
//   planted_uninitialised reads what nobody wrote                initcheck
// launch  grid = 1, block = 64; shared = 0
// in      words from
// out     to
// numeric none
// cost    none
#include "port.cuh"

namespace saec {

struct Planted {       // parameters
  const uint32* from;  // IN  (words) never written to
  uint32* to;          // OUT (words)
  int32 words;         // IN
};

__device__ __forceinline__ void outside(const Planted& p) {
  if (threadIdx.x == 0) p.to[p.words] = 1;
}

__device__ __forceinline__ void race(const Planted& p) {
  SAEC_STATIC_SHARED(uint32, word, [1]);
  word[0] = threadIdx.x / 32;
  if (threadIdx.x == 63) p.to[0] = word[0];
}

__device__ __forceinline__ void uninitialised(const Planted& p) {
  if (int32(threadIdx.x) < p.words) p.to[threadIdx.x] = p.from[threadIdx.x];
}

}  // namespace saec

#define PLANTED(NAME, FAULT)                       \
  SAEC_KERNEL void NAME(const saec::Planted p) {   \
    saec::FAULT(p);                                \
  }                                                \
  SAEC_EXPORT(NAME)

#ifndef SAEC_ONE_KERNEL
PLANTED(planted_outside, outside)
PLANTED(planted_race, race)
PLANTED(planted_uninitialised, uninitialised)
#endif
