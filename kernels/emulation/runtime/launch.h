// Kernels by name, and one launch of one of them.
#pragma once

#include <cstddef>
#include <string>

#include "types.h"

namespace emulation {

// A kernel of this library, without the type of its parameters.
struct Kernel {
  std::string name;
  size_t parameters_bytes;
  void (*function)();
  void (*call)(void (*function)(), const void* parameters);
};

struct Launch {
  const Kernel* kernel;
  const void* parameters;
  uint3 grid;
  uint3 block;
  size_t shared_bytes;
  size_t most_shared_bytes;  // static and dynamic of one block
  // The order of threads and blocks, and the sums of matrix products (product_sums):
  //   0  ascending                 1  descending          others  drawn
  //   even  all threads go on by turns
  //   odd   one warp runs ahead as far as it can
  uint32 seed;
  bool count_accesses;  // what memory takes for them; in builds for race checks
};

void add_kernel(const Kernel& kernel);

// Registers a kernel when the library is loaded.
class Registration {
 public:
  template <class Parameters>
  Registration(const char* name, void (*kernel)(Parameters)) {
    add_kernel({name, sizeof(Parameters), reinterpret_cast<void (*)()>(kernel), call<Parameters>});
  }

 private:
  template <class Parameters>
  static void call(void (*function)(), const void* parameters) {
    const auto kernel = reinterpret_cast<void (*)(Parameters)>(function);
    kernel(*static_cast<const Parameters*>(parameters));
  }
};

}  // namespace emulation
