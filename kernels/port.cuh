// What kernels are written against: the same source under NVRTC or nvcc and, with SAEC_EMULATED
// defined, under g++ on a machine without a GPU (emulation/).
//
// Beside it kernels may use CUDA's own spellings, as far as emulation/runtime/dialect.h knows them.
// A kernel takes one parameter, a struct by value:
//
//   SAEC_KERNEL void __launch_bounds__(256) name(const Params p) { ... }
//   SAEC_EXPORT(name)
//
// Everything that must have one value on every machine has a function here: CuPy compiles with
// -ftz=true, which makes 0 of subnormal float32 in plain operations and casts, and nvcc contracts
// products and sums of doubles, unless they are spelled as instructions.
#pragma once

using int32 = int;
using int64 = long long;
using uint16 = unsigned short;
using uint32 = unsigned int;
using uint64 = unsigned long long;

#ifdef SAEC_EMULATED
#include "emulation/runtime/emulated_port.h"
#else

// C names, so that a kernel is found by its own.
#define SAEC_KERNEL extern "C" __global__
// Makes a kernel launchable by name in the emulator; a GPU needs no more than C names.
#define SAEC_EXPORT(kernel)
// Shared memory whose size the launch gives; one in a kernel.
#define SAEC_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char saec_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(saec_dynamic_shared)
// Shared memory of a size known here: SAEC_STATIC_SHARED(float, tile, [8][33]).
#define SAEC_STATIC_SHARED(T, name, dims) __shared__ __align__(16) T name dims

// Loaded and stored by one instruction; aligned to their size.
using Word2 = uint2;
using Word4 = uint4;

namespace saec {

// ---- matrix product of one warp

// d = A · B + c, A 16×16 by rows and B 16×8 by columns in float16, sums in float32. Lane l holds, with
// g = l / 4 and t = l % 4, low half first:
//   a[0] A[g][2t, 2t+1]   a[1] A[g+8][2t, 2t+1]   a[2] A[g][2t+8, 2t+9]   a[3] A[g+8][2t+8, 2t+9]
//   b0   B[2t, 2t+1][g]   b1   B[2t+8, 2t+9][g]
//   d[0], d[1] D[g][2t, 2t+1]   d[2], d[3] D[g+8][2t, 2t+1]   c likewise
// The order and the rounding of the additions are the hardware's own.
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1,
                                        const float (&c)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  float half[4];
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"
      : "=f"(half[0]), "=f"(half[1]), "=f"(half[2]), "=f"(half[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%7,%8,%9,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1), "f"(half[0]), "f"(half[1]), "f"(half[2]), "f"(half[3]));
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
        "f"(c[2]), "f"(c[3]));
#endif
}

// d += A · B.
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1) {
  mma_f16(d, a, b0, b1, d);
}

// ---- float16

// To nearest, ties to even; too large is infinity; subnormals on both sides are kept.
__device__ __forceinline__ uint16 f16_bits(float value) {
  uint16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

__device__ __forceinline__ float f16_value(uint16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// Two float16 in one word, as the matrix product wants them.
__device__ __forceinline__ uint32 f16_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  return f16_bits(low) | static_cast<uint32>(f16_bits(high)) << 16;
#else
  uint32 pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

// ---- float32 and float64, rounded as named whatever the compiler was told

__device__ __forceinline__ double widened(float value) {
  double wide;
  asm("cvt.f64.f32 %0, %1;" : "=d"(wide) : "f"(value));
  return wide;
}

__device__ __forceinline__ float narrowed(double value) {
  float narrow;
  asm("cvt.rn.f32.f64 %0, %1;" : "=f"(narrow) : "d"(value));
  return narrow;
}

// The least float32 that is not below the value.
__device__ __forceinline__ float narrowed_up(double value) {
  float narrow;
  asm("cvt.rp.f32.f64 %0, %1;" : "=f"(narrow) : "d"(value));
  return narrow;
}

__device__ __forceinline__ float fma_rn(float a, float b, float c) {
  float result;
  asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(result) : "f"(a), "f"(b), "f"(c));
  return result;
}

__device__ __forceinline__ double add_rn(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ double sub_rn(double a, double b) { return __dsub_rn(a, b); }
__device__ __forceinline__ double mul_rn(double a, double b) { return __dmul_rn(a, b); }

// To nearest, ties to even; too large is the end of the range.
__device__ __forceinline__ int64 rint_int64(double value) { return __double2ll_rn(value); }

// ---- memory

// The sum of 32 bits returns what stood there before; that of 64 bits without a result is one
// reduction that nobody waits for.
__device__ __forceinline__ uint32 atomic_add(uint32* at, uint32 value) {
  return atomicAdd(at, value);
}
__device__ __forceinline__ void atomic_add(uint64* at, uint64 value) { atomicAdd(at, value); }

// Copies 16 bytes, both ends aligned to 16, beside other work; readable by this thread after the
// wait, by others after a barrier that follows the wait. sm_75 copies at once.
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  *static_cast<Word4*>(shared) = *static_cast<const Word4*>(global);
#else
  const uint32 target = static_cast<uint32>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(global) : "memory");
#endif
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void copy_async_commit() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all groups but the latest N.
template <int N>
__device__ __forceinline__ void copy_async_wait() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// A read of what nobody writes during the kernel.
template <class T>
__device__ __forceinline__ T load_cached(const T* from) {
  return __ldg(from);
}

}  // namespace saec
#endif
