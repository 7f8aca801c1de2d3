#include "shared_memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "race_check.h"
#include "thread_sanitizer.h"

namespace emulation {

// No more than CUDA promises, so that a vector that needs more is found.
constexpr size_t alignment = 16;

SharedMemory::SharedMemory(size_t dynamic_bytes, RaceCheck& races)
    : races_(races), dynamic_bytes_(dynamic_bytes) {
  if (dynamic_bytes > 0) dynamic_ = allocate(dynamic_bytes, "dynamic shared memory");
}

SharedMemory::~SharedMemory() {
  const Unobserved unobserved;
  for (const Array& array : arrays_) free(array.memory);
  free(dynamic_);
}

void* SharedMemory::array(const void* key, size_t bytes, const char* name) {
  for (const Array& array : arrays_) {
    if (array.key == key) return array.memory;
  }
  void* memory = allocate(bytes, name);
  const Unobserved unobserved;
  arrays_.push_back({key, memory, bytes});
  return memory;
}

size_t SharedMemory::static_bytes() const {
  size_t bytes = 0;
  for (const Array& array : arrays_) bytes += array.bytes;
  return bytes;
}

bool SharedMemory::holds(const void* at) const {
  if (within(at, dynamic_, dynamic_bytes_)) return true;
  for (const Array& array : arrays_) {
    if (within(at, array.memory, array.bytes)) return true;
  }
  return false;
}

void* SharedMemory::allocate(size_t bytes, const char* name) {
  const Unobserved unobserved;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes) != 0) throw std::bad_alloc();
  memset(memory, 0xFF, bytes);
  races_.add_memory(memory, bytes, name);
  return memory;
}

}  // namespace emulation
