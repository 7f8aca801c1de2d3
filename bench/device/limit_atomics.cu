// limit_atomics - how fast sums are added to: 32 bits in shared memory, 64 bits in global memory.
//   table[address] += 1, addresses in the order in which a warp's lanes read them
// launch  grid = a few blocks a processor, block = 256; shared = entries words for _shared, else
//         a word
// in      addresses n_addresses entries steps
// inout   table
// out     kept cycles
// needs   every address < entries; n_addresses is a power of two
// numeric exact: what is added can be counted
// cost    one atomic addition a thread and step
#include "cycles.cuh"

namespace saec {

struct LimitAtomics {       // parameters
  const uint32* addresses;  // IN    (n_addresses)
  uint64* table;            // INOUT (entries)
  uint32* kept;             // OUT   (grid, block)
  int64* cycles;            // OUT   (grid) clocks that a block took
  int32 n_addresses;        // IN
  int32 entries;            // IN
  int32 steps;              // IN    additions of each thread
};

struct SharedTable {
  // As accumulate.cuh adds: the word that stood there tells whether to carry.
  static __device__ __forceinline__ uint32 add(const LimitAtomics&, uint32* own, uint32 at) {
    return atomic_add(own + at, 1u);
  }
};
struct GlobalTable {
  static __device__ __forceinline__ uint32 add(const LimitAtomics& p, uint32*, uint32 at) {
    atomic_add(p.table + at, uint64(1));
    return at;
  }
};

template <class TABLE, bool SHARED>
__device__ __forceinline__ void add_many(const LimitAtomics& p) {
  SAEC_DYNAMIC_SHARED(uint32, own);
  if (SHARED) {
    for (int32 i = int32(threadIdx.x); i < p.entries; i += int32(blockDim.x)) own[i] = 0;
  }
  const int64 thread = int64(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64 step = int64(gridDim.x) * blockDim.x;
  uint32 kept = 0;
  const Stopwatch watch = Stopwatch::begin();
#pragma unroll 4
  for (int32 s = 0; s < p.steps; s++) {
    const int64 turn = (thread + s * step) & (p.n_addresses - 1);
    kept ^= TABLE::add(p, own, load_cached(p.addresses + turn));
  }
  watch.end(p.cycles);
  if (SHARED) {
    for (int32 i = int32(threadIdx.x); i < p.entries; i += int32(blockDim.x)) {
      if (own[i] != 0) atomic_add(p.table + i, uint64(own[i]));
    }
  }
  p.kept[thread] = kept;
}

}  // namespace saec

#define LIMIT_ATOMICS(NAME, TABLE, SHARED)                                   \
  SAEC_KERNEL void __launch_bounds__(256) NAME(const saec::LimitAtomics p) { \
    saec::add_many<saec::TABLE, SHARED>(p);                                  \
  }                                                                          \
  SAEC_EXPORT(NAME)

#ifndef SAEC_ONE_KERNEL
LIMIT_ATOMICS(limit_atomics_shared, SharedTable, true)
LIMIT_ATOMICS(limit_atomics_global, GlobalTable, false)
#endif
