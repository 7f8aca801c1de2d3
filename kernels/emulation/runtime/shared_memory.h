// The shared memory of one block.
#pragma once

#include <cstddef>
#include <vector>

#include "types.h"

namespace emulation {

class RaceCheck;

// Each array is a piece of the heap of its own, so that AddressSanitizer sees its ends, filled with
// 0xFF: NaN as a floating-point number of any width.
class SharedMemory {
 public:
  SharedMemory(size_t dynamic_bytes, RaceCheck& races);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Null if the launch gave none.
  void* dynamic() const { return dynamic_; }
  void* array(const void* key, size_t bytes, const char* name);
  size_t static_bytes() const;
  // Whether an address is in one of the arrays.
  bool holds(const void* at) const;

 private:
  struct Array {
    const void* key;
    void* memory;
    size_t bytes;
  };

  void* allocate(size_t bytes, const char* name);

  RaceCheck& races_;
  const size_t dynamic_bytes_;
  void* dynamic_ = nullptr;
  std::vector<Array> arrays_;
};

}  // namespace emulation
