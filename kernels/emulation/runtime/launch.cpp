#include "launch.h"

#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <vector>

#include "access_counts.h"
#include "kernel_calls.h"
#include "scheduler.h"

namespace emulation {
namespace {

std::vector<Kernel>& kernels() {
  static std::vector<Kernel> all;
  return all;
}

const Kernel& kernel_named(const char* name) {
  for (const Kernel& kernel : kernels()) {
    if (kernel.name == name) return kernel;
  }
  throw std::invalid_argument("no such kernel");
}

// The limits of every architecture; grid and block have at least 1 in each direction.
void check_size(const uint3& grid, const uint3& block) {
  const uint64 threads = static_cast<uint64>(block.x) * block.y * block.z;
  const uint64 blocks = static_cast<uint64>(grid.x) * grid.y * grid.z;
  if (threads == 0 || threads > 1024) {
    throw std::invalid_argument("a block has 1 to 1024 threads, not " + std::to_string(threads));
  }
  if (blocks == 0 || grid.x >= 1u << 31 || grid.y >= 1u << 16 || grid.z >= 1u << 16) {
    throw std::invalid_argument("a grid of " + std::to_string(blocks) + " blocks");
  }
}

}  // namespace

void add_kernel(const Kernel& kernel) { kernels().push_back(kernel); }

}  // namespace emulation

// ---- what emulator.py calls

#define SAEC_PUBLIC extern "C" __attribute__((visibility("default")))

// The name of a kernel; null past the last.
SAEC_PUBLIC const char* saec_kernel_name(size_t index) {
  const auto& kernels = emulation::kernels();
  return index < kernels.size() ? kernels[index].name.c_str() : nullptr;
}

// Runs a kernel; returns 0, or 1 with a message that ends in a zero byte.
SAEC_PUBLIC int saec_launch(const char* name, const void* parameters, size_t parameters_bytes,
                            const uint32* grid, const uint32* block, size_t shared_bytes,
                            size_t most_shared_bytes, uint32 seed, bool count_accesses,
                            char* message, size_t message_bytes) {
  try {
    const emulation::Kernel& kernel = emulation::kernel_named(name);
    if (kernel.parameters_bytes != parameters_bytes) {
      throw std::invalid_argument("its parameters are " + std::to_string(kernel.parameters_bytes) +
                                  " bytes, not " + std::to_string(parameters_bytes));
    }
    const uint3 grid_size = {grid[0], grid[1], grid[2]};
    const uint3 block_size = {block[0], block[1], block[2]};
    emulation::check_size(grid_size, block_size);
    // The caller's bytes may lie anywhere; the struct wants its alignment.
    std::vector<std::max_align_t> aligned(parameters_bytes / sizeof(std::max_align_t) + 1);
    memcpy(aligned.data(), parameters, parameters_bytes);
    emulation::scheduler().run({&kernel, aligned.data(), grid_size, block_size, shared_bytes,
                                most_shared_bytes, seed, count_accesses});
    return 0;
  } catch (const std::exception& error) {
    snprintf(message, message_bytes, "%s", error.what());
    return 1;
  }
}

// Fills in what the last launch counted, if it was to; false past the last.
SAEC_PUBLIC bool saec_access_count(size_t index, emulation::AccessCount* count) {
  return emulation::AccessCounts::read(index, count);
}
