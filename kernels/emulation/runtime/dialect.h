// CUDA's own spellings, as far as kernels use them, for g++. What is missing here a kernel must not
// use; __shared__ is missing on purpose, because port.cuh has macros for it.
#pragma once

#include <cmath>

#include <math.h>  // isfinite and its kind without std::, as CUDA has them

#include "conversions.h"
#include "kernel_calls.h"
#include "types.h"

// ---- words of the language

#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

#define threadIdx (::emulation::current->index)
#define blockIdx (::emulation::current->block->index)
#define blockDim (::emulation::current->block->block_size)
#define gridDim (::emulation::current->block->grid_size)

// ---- vectors, aligned as CUDA aligns them

// clang-format off
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { uint32 x, y; };
struct alignas(16) uint4 { uint32 x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
// clang-format on

inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32 x, uint32 y) { return {x, y}; }
inline uint4 make_uint4(uint32 x, uint32 y, uint32 z, uint32 w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// ---- barriers

inline void __syncthreads(emulation::Site site = emulation::here()) {
  emulation::barrier(false, "__syncthreads", site);
}
inline int __syncthreads_count(int vote, emulation::Site site = emulation::here()) {
  return static_cast<int>(emulation::barrier(vote != 0, "__syncthreads_count", site));
}
inline int __syncthreads_or(int vote, emulation::Site site = emulation::here()) {
  return emulation::barrier(vote != 0, "__syncthreads_or", site) != 0;
}
inline int __syncthreads_and(int vote, emulation::Site site = emulation::here()) {
  return emulation::barrier(vote == 0, "__syncthreads_and", site) == 0;
}
inline void __syncwarp(uint32 mask = emulation::all_lanes,
                       emulation::Site site = emulation::here()) {
  emulation::warp_barrier(mask, site);
}
inline void __threadfence() { emulation::fence(); }

// ---- exchanges within a warp

namespace emulation {

template <class T>
inline T exchange(uint32 mask, T value, uint32 source, const char* name, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA exchanges values of 4 or 8 bytes");
  uint64 bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = shuffle(mask, bits, source, name, site);
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The first lane of this lane's part of the warp, `width` wide.
inline uint32 first_of_part(int width) {
  return current->lane & ~(static_cast<uint32>(width) - 1u);
}
inline uint32 end_of_part(int width) { return first_of_part(width) + static_cast<uint32>(width); }

}  // namespace emulation

template <class T>
inline T __shfl_sync(uint32 mask, T value, int lane, int width = 32,
                     emulation::Site site = emulation::here()) {
  const uint32 within = static_cast<uint32>(lane) & (static_cast<uint32>(width) - 1u);
  const uint32 source = emulation::first_of_part(width) + within;
  return emulation::exchange(mask, value, source, "__shfl_sync", site);
}
template <class T>
inline T __shfl_xor_sync(uint32 mask, T value, int lanes, int width = 32,
                         emulation::Site site = emulation::here()) {
  const uint32 own = emulation::current->lane;
  const uint32 other = own ^ static_cast<uint32>(lanes);
  const uint32 source = other < emulation::end_of_part(width) ? other : own;
  return emulation::exchange(mask, value, source, "__shfl_xor_sync", site);
}
template <class T>
inline T __shfl_down_sync(uint32 mask, T value, uint32 lanes, int width = 32,
                          emulation::Site site = emulation::here()) {
  const uint32 own = emulation::current->lane;
  const uint32 source = lanes < emulation::end_of_part(width) - own ? own + lanes : own;
  return emulation::exchange(mask, value, source, "__shfl_down_sync", site);
}
template <class T>
inline T __shfl_up_sync(uint32 mask, T value, uint32 lanes, int width = 32,
                        emulation::Site site = emulation::here()) {
  const uint32 own = emulation::current->lane;
  const uint32 source = lanes <= own - emulation::first_of_part(width) ? own - lanes : own;
  return emulation::exchange(mask, value, source, "__shfl_up_sync", site);
}

inline uint32 __ballot_sync(uint32 mask, int vote, emulation::Site site = emulation::here()) {
  return emulation::ballot(mask, vote != 0, "__ballot_sync", site);
}
inline int __any_sync(uint32 mask, int vote, emulation::Site site = emulation::here()) {
  return emulation::ballot(mask, vote != 0, "__any_sync", site) != 0;
}
inline int __all_sync(uint32 mask, int vote, emulation::Site site = emulation::here()) {
  return emulation::ballot(mask, vote == 0, "__all_sync", site) == 0;
}
template <class T>
inline uint32 __match_any_sync(uint32 mask, T value, emulation::Site site = emulation::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA compares values of 4 or 8 bytes");
  uint64 bits = 0;
  memcpy(&bits, &value, sizeof value);
  return emulation::match_any(mask, bits, site);
}

// ---- bits

inline int __popc(uint32 value) { return __builtin_popcount(value); }
inline int __popcll(uint64 value) { return __builtin_popcountll(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(int64 value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<uint32>(value)); }
inline int __clzll(int64 value) {
  return value == 0 ? 64 : __builtin_clzll(static_cast<uint64>(value));
}
inline int __float_as_int(float value) { return emulation::same_bits<int>(value); }
inline uint32 __float_as_uint(float value) { return emulation::same_bits<uint32>(value); }
inline float __int_as_float(int bits) { return emulation::same_bits<float>(bits); }
inline float __uint_as_float(uint32 bits) { return emulation::same_bits<float>(bits); }
inline int64 __double_as_longlong(double value) { return emulation::same_bits<int64>(value); }
inline double __longlong_as_double(int64 bits) { return emulation::same_bits<double>(bits); }

// ---- float32 that no compiler may contract; the emulator is compiled without contraction

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }

// ---- the lesser and the greater; CUDA mixes signed and unsigned, which is refused here

inline int min(int a, int b) { return b < a ? b : a; }
inline int max(int a, int b) { return a < b ? b : a; }
inline uint32 min(uint32 a, uint32 b) { return b < a ? b : a; }
inline uint32 max(uint32 a, uint32 b) { return a < b ? b : a; }
inline int64 min(int64 a, int64 b) { return b < a ? b : a; }
inline int64 max(int64 a, int64 b) { return a < b ? b : a; }
inline uint64 min(uint64 a, uint64 b) { return b < a ? b : a; }
inline uint64 max(uint64 a, uint64 b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
