// What the running kernel sees of the emulator and asks of it.
#pragma once

#include <cstddef>

#include "types.h"

namespace emulation {

struct BlockView {
  uint3 grid_size;
  uint3 block_size;
  uint3 index;
};

struct ThreadView {
  uint3 index;
  uint32 number;  // within the block, x fastest
  uint32 warp;
  uint32 lane;
  const BlockView* block;
};

// The thread that runs; none while the scheduler does.
extern const ThreadView* current;

// Ends the launch with a message.
[[noreturn]] void fail(const char* message, Site site);

// ---- barriers

// Waits for all threads of the block; returns how many of them voted true.
uint32 barrier(bool vote, const char* name, Site site);
void warp_barrier(uint32 mask, Site site);

// ---- exchanges within a warp: as the CUDA functions, values as 64 bits

uint64 shuffle(uint32 mask, uint64 value, uint32 source_lane, const char* name, Site site);
uint32 ballot(uint32 mask, bool vote, const char* name, Site site);
uint32 match_any(uint32 mask, uint64 value, Site site);
// As mma_f16 of port.cuh.
void multiply_f16(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1, Site site);

// ---- memory

void* dynamic_shared(Site site);
// `key` tells one array of a kernel from another.
void* static_shared(const void* key, size_t bytes, const char* name, Site site);

// A copy that was begun and has not been waited for.
struct PendingCopy {
  void* shared;
  const void* global;
  uint32 group;
};

void begin_copy(void* shared, const void* global, Site site);
void close_copy_group();
// Takes the next copy that is complete when all groups but the latest `open` are, to be carried out
// by the caller, who asks until there is none.
bool next_copy(uint32 open, PendingCopy* copy);

// A fence of this thread came before: its atomics now order what it wrote and reads.
void fence();
bool fenced();

}  // namespace emulation
