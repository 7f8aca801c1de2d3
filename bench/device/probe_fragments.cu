// probe_fragments - the matrix product as port.cuh documents it, on operands that the host laid out.
//   d = c + Σ_s A_s · B_s, steps s ascending, each warp its own
// launch  grid = n / warps of a block, block = any whole warps; shared = 0
// in      a b c steps
// out     d
// numeric whatever the matrix unit does: this is what is to be found out
// cost    steps · 16 · 16 · 8 products a warp
#include "port.cuh"

namespace saec {

struct ProbeFragments {  // parameters
  const uint32* a;       // IN  (n, steps, 32, 4) fragments of A, as in mma_f16
  const uint32* b;       // IN  (n, steps, 32, 2) of B
  const float* c;        // IN  (n, 32, 4) of C
  float* d;              // OUT (n, 32, 4) of D
  int32 steps;           // IN  products added one after another
};

__device__ __forceinline__ void probe_fragments_warp(const ProbeFragments& p) {
  const int64 warp = (int64(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
  const int32 lane = int32(threadIdx.x % 32);
  float d[4];
#pragma unroll
  for (int32 i = 0; i < 4; i++) d[i] = p.c[(warp * 32 + lane) * 4 + i];
  for (int32 s = 0; s < p.steps; s++) {
    const int64 at = (warp * p.steps + s) * 32 + lane;
    uint32 a[4];
#pragma unroll
    for (int32 i = 0; i < 4; i++) a[i] = p.a[at * 4 + i];
    mma_f16(d, a, p.b[at * 2], p.b[at * 2 + 1]);
  }
#pragma unroll
  for (int32 i = 0; i < 4; i++) p.d[(warp * 32 + lane) * 4 + i] = d[i];
}

}  // namespace saec

#define PROBE_FRAGMENTS(NAME)                                                  \
  SAEC_KERNEL void __launch_bounds__(256) NAME(const saec::ProbeFragments p) { \
    saec::probe_fragments_warp(p);                                             \
  }                                                                            \
  SAEC_EXPORT(NAME)

#ifndef SAEC_ONE_KERNEL
PROBE_FRAGMENTS(probe_fragments)
#endif
