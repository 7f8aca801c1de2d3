// cycles.cuh - the clock of the processor that a block runs on; the emulator has none.
#pragma once
#include "port.cuh"

namespace saec {

__device__ __forceinline__ int64 cycles_now() {
#ifdef SAEC_EMULATED
  return 0;
#else
  return clock64();
#endif
}

// Notes when a block started and ended, so that rates are per clock, whatever the clock is then.
struct Stopwatch {
  int64 start;

  static __device__ __forceinline__ Stopwatch begin() {
    __syncthreads();
    return {cycles_now()};
  }

  __device__ __forceinline__ void end(int64* cycles) const {
    __syncthreads();
    if (threadIdx.x == 0) cycles[blockIdx.x] = cycles_now() - start;
  }
};

}  // namespace saec
