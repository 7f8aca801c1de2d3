// Everything that lanes of a warp exchange, and votes of a block.
#include "port.cuh"

struct Exchanges {  // parameters
  const uint32* words;    // IN  (32,)
  const double* doubles;  // IN  (32,)
  uint32* of_words;       // OUT (16, 32) by kind of exchange and lane
  double* of_doubles;     // OUT (4, 32)
};

constexpr uint32 full_warp = 0xFFFFFFFFu;

__device__ void exchange(const Exchanges& p) {
  const int lane = static_cast<int>(threadIdx.x);
  const uint32 word = p.words[lane];
  const double value = p.doubles[lane];
  int kind = 0;
  const auto keep = [&](uint32 result) { p.of_words[32 * kind++ + lane] = result; };
  keep(__shfl_sync(full_warp, word, 5 * lane));
  keep(__shfl_sync(full_warp, word, 3, 8));
  keep(__shfl_xor_sync(full_warp, word, 9));
  keep(__shfl_xor_sync(full_warp, word, 9, 8));
  keep(__shfl_down_sync(full_warp, word, 3));
  keep(__shfl_down_sync(full_warp, word, 3, 16));
  keep(__shfl_up_sync(full_warp, word, 3));
  keep(__shfl_up_sync(full_warp, word, 3, 16));
  keep(__ballot_sync(full_warp, word % 2 == 1));
  keep(static_cast<uint32>(__any_sync(full_warp, word == p.words[7])));
  keep(static_cast<uint32>(__all_sync(full_warp, word == p.words[7])));
  keep(__match_any_sync(full_warp, word % 4));
  keep(__match_any_sync(full_warp, value));
  // A part of the warp exchanges on its own.
  keep(lane < 8 ? __shfl_xor_sync(0xFFu, word, 1) : word);
  keep(lane < 8 ? __ballot_sync(0xFFu, 1) : 0u);
  keep(__float_as_uint(__shfl_xor_sync(full_warp, __uint_as_float(word), 1)));
  p.of_doubles[lane] = __shfl_xor_sync(full_warp, value, 17);
  p.of_doubles[32 + lane] = __shfl_sync(full_warp, value, 31 - lane);
  const int64 bits = __shfl_down_sync(full_warp, __double_as_longlong(value), 1);
  p.of_doubles[64 + lane] = __longlong_as_double(bits);
  const int votes = __syncthreads_count(word % 2 == 1);
  const int some = __syncthreads_or(word == p.words[7]);
  const int every = __syncthreads_and(word == p.words[7]);
  p.of_doubles[96 + lane] = votes + 100 * some + 1000 * every;
}

#define EXCHANGE(name, body)                                                  \
  SAEC_KERNEL void __launch_bounds__(32) name(const Exchanges p) { body(p); } \
  SAEC_EXPORT(name)

#ifndef SAEC_ONE_KERNEL
EXCHANGE(exchanges, exchange)
#endif
