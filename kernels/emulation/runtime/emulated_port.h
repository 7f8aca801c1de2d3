// The emulator's side of port.cuh, which includes it and documents what stands here.
#pragma once

#include "conversions.h"
#include "dialect.h"
#include "kernel_calls.h"
#include "launch.h"
#include "types.h"

#define SAEC_KERNEL static
#define SAEC_EXPORT(kernel) \
  static const ::emulation::Registration registration_of_##kernel(#kernel, kernel);
#define SAEC_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::emulation::dynamic_shared(::emulation::here()))
#define SAEC_STATIC_SHARED(T, name, dims) \
  static const char key_of_##name = 0;    \
  auto& name = *static_cast<T(*) dims>(   \
      ::emulation::static_shared(&key_of_##name, sizeof(T dims), #name, ::emulation::here()))

using Word2 = uint2;
using Word4 = uint4;

namespace saec {

// ---- matrix product of one warp

inline void mma_f16(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1,
                    emulation::Site site = emulation::here()) {
  emulation::multiply_f16(d, a, b0, b1, site);
}

inline void mma_f16(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1,
                    const float (&c)[4], emulation::Site site = emulation::here()) {
  for (int i = 0; i < 4; i++) d[i] = c[i];
  emulation::multiply_f16(d, a, b0, b1, site);
}

// ---- conversions and roundings

using emulation::f16_bits;
using emulation::f16_value;
using emulation::narrowed_up;
using emulation::rint_int64;

inline uint32 f16_pair(float low, float high) {
  return f16_bits(low) | static_cast<uint32>(f16_bits(high)) << 16;
}
inline double widened(float value) { return value; }
inline float narrowed(double value) { return static_cast<float>(value); }
inline float fma_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double add_rn(double a, double b) { return a + b; }
inline double sub_rn(double a, double b) { return a - b; }
inline double mul_rn(double a, double b) { return a * b; }

// ---- atomics: they order nothing but themselves, unless a fence came before

// Always in line: reports and counts name lines of kernels.
[[gnu::always_inline]] inline uint32 atomic_add(uint32* at, uint32 value) {
  if (emulation::fenced()) return __atomic_fetch_add(at, value, __ATOMIC_ACQ_REL);
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
[[gnu::always_inline]] inline void atomic_add(uint64* at, uint64 value) {
  if (emulation::fenced()) {
    __atomic_fetch_add(at, value, __ATOMIC_ACQ_REL);
  } else {
    __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
  }
}

// ---- asynchronous copies

// The target is poisoned when the copy is begun and written when it is waited for: whoever reads it
// between, or without a wait, gets wrong data, and race checkers see both moments.
inline void copy_async16(void* shared, const void* global,
                         emulation::Site site = emulation::here()) {
  emulation::begin_copy(shared, global, site);
  // A vector of the compiler's: a struct's members would be four stores.
  using Quad [[gnu::vector_size(sizeof(Word4))]] = uint32;
  *static_cast<Quad*>(shared) = ~Quad{};
}
inline void copy_async_commit() { emulation::close_copy_group(); }
template <int N>
inline void copy_async_wait() {
  emulation::PendingCopy copy;
  while (emulation::next_copy(N, &copy)) {
    *static_cast<Word4*>(copy.shared) = *static_cast<const Word4*>(copy.global);
  }
}

// ---- reads

template <class T>
inline T load_cached(const T* from) {
  return *from;
}

}  // namespace saec
