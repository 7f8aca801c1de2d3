// What all sources of the emulator share: the integer names of port.cuh, and places in kernels.
#pragma once

#include <cstddef>

using int32 = int;
using int64 = long long;
using uint16 = unsigned short;
using uint32 = unsigned int;
using uint64 = unsigned long long;

// As CUDA has it, for threadIdx and its kind.
struct uint3 {
  uint32 x;
  uint32 y;
  uint32 z;
};

namespace emulation {

constexpr uint32 warp_size = 32;
constexpr uint32 all_lanes = 0xFFFFFFFFu;

// Whether an address is in a piece of memory.
inline bool within(const void* at, const void* memory, size_t bytes) {
  const char* const start = static_cast<const char*>(memory);
  return static_cast<const char*>(at) >= start && static_cast<const char*>(at) < start + bytes;
}

// Where in a kernel something is asked for. Functions that kernels call take it as their last
// argument, `Site site = here()`: the builtins then name the line of the call.
struct Site {
  const char* file;
  int line;
};

constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return {file, line};
}

inline bool operator==(const Site& a, const Site& b) {
  return a.line == b.line && __builtin_strcmp(a.file, b.file) == 0;
}
inline bool operator!=(const Site& a, const Site& b) { return !(a == b); }

}  // namespace emulation
