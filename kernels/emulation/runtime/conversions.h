// Conversions and roundings of the GPU's instructions, bit for bit; NaN is the one they return.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "types.h"

namespace emulation {

template <class To, class From>
inline To same_bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "reinterpreting needs types of one size");
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}

// cvt.rn.f16.f32
inline uint16 f16_bits(float value) {
  const uint32 bits = same_bits<uint32>(value);
  const uint32 sign = bits >> 16 & 0x8000u;
  const uint32 magnitude = bits & 0x7FFFFFFFu;
  constexpr uint32 infinity = 0x7F800000u;
  constexpr uint32 halfway_to_too_large = 0x477FF000u;  // 65520
  constexpr uint32 least_normal = 0x38800000u;          // 2^-14
  constexpr uint32 half_of_least = 0x33000000u;         // 2^-25, a tie that goes to 0
  if (magnitude > infinity) return 0x7FFFu;
  if (magnitude >= halfway_to_too_large) return static_cast<uint16>(sign | 0x7C00u);
  if (magnitude <= half_of_least) return static_cast<uint16>(sign);

  // Bits of the significand that fall away, and what is above them. Of a normal number the exponent
  // goes along, so that rounding carries into it.
  uint32 dropped = 13;
  uint32 kept = magnitude - (112u << 23);
  if (magnitude < least_normal) {
    dropped = 126u - (magnitude >> 23);
    kept = (magnitude & 0x7FFFFFu) | 0x800000u;
  }
  const uint32 rest = kept & ((1u << dropped) - 1u);
  const uint32 half = 1u << (dropped - 1u);
  uint32 result = kept >> dropped;
  if (rest > half || (rest == half && (result & 1u) != 0)) result++;
  return static_cast<uint16>(sign | result);
}

// cvt.f32.f16
inline float f16_value(uint16 bits) {
  const uint32 sign = (bits & 0x8000u) << 16;
  const uint32 magnitude = bits & 0x7FFFu;
  if (magnitude > 0x7C00u) return same_bits<float>(0x7FFFFFFFu);
  if (magnitude == 0x7C00u) return same_bits<float>(sign | 0x7F800000u);
  if (magnitude < 0x0400u) {
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return same_bits<float>(sign | same_bits<uint32>(value));
  }
  return same_bits<float>(sign | ((magnitude << 13) + (112u << 23)));
}

// cvt.rp.f32.f64
inline float narrowed_up(double value) {
  const float nearest = static_cast<float>(value);
  const float infinity = std::numeric_limits<float>::infinity();
  return nearest < value ? std::nextafter(nearest, infinity) : nearest;
}

// cvt.rni.s64.f64
inline int64 rint_int64(double value) {
  constexpr double range = 0x1p63;
  if (std::isnan(value) || value < -range) return std::numeric_limits<int64>::min();
  if (value >= range) return std::numeric_limits<int64>::max();
  return std::llrint(value);
}

}  // namespace emulation
