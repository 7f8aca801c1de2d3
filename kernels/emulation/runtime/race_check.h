// Finds every race in the shared memory of a block, whatever the schedule that was run.
//
// Kernels are compiled with -fsanitize=thread, whose calls before each access end in race_hooks.cpp
// instead of ThreadSanitizer. Two accesses of one byte race if different threads make them, one
// writes, not both are atomic, and neither a barrier of the block nor, within a warp, a chain of
// __syncwarp lies between them.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kernel_calls.h"
#include "types.h"

namespace emulation {

enum class AccessKind { read, write, atomic };

#ifdef SAEC_RACECHECK

class RaceCheck {
 public:
  explicit RaceCheck(uint32 warps);

  void add_memory(const void* start, size_t bytes, const char* name);
  void barrier();
  void warp_barrier(uint32 warp, uint32 lanes);
  // `code` is where the access returns to, to be named in a report.
  void access(const ThreadView& thread, const void* at, size_t bytes, AccessKind kind,
              const void* code);

  // What all blocks of a launch raced for; empty if nothing.
  static void begin_launch();
  static std::string report();

 private:
  // Lanes of one warp that accessed a byte at the same time of their warp.
  struct Group {
    uint32 warp;
    uint32 time;
    uint32 lanes;
    const void* code;
  };
  // What happened to one byte since the last barrier. A write that raced with nothing comes after
  // all that was before it, so that whatever it is ordered before, they are too: it replaces them.
  struct Byte {
    uint32 interval = 0;
    std::vector<Group> writes;
    std::vector<Group> reads;
    std::vector<Group> atomics;
  };
  struct Memory {
    const char* start;
    std::string name;
    std::vector<Byte> bytes;
  };
  // A vector clock of each lane: times[lane][lane] counts its own __syncwarp, times[lane][other]
  // is the time of `other` up to which all it did comes before what `lane` does now.
  struct Warp {
    uint32 times[warp_size][warp_size];
  };

  void compare(const std::vector<Group>& groups, const ThreadView& thread, const char* what,
               const Memory& memory, size_t at, const void* code) const;
  uint32 unordered_lanes(const Group& group, const ThreadView& thread) const;
  void remember(std::vector<Group>& groups, const ThreadView& thread, const void* code) const;

  uint32 interval_ = 1;  // counts the barriers
  std::vector<Memory> memories_;
  std::vector<Warp> warps_;
};

#else

class RaceCheck {
 public:
  explicit RaceCheck(uint32) {}
  void add_memory(const void*, size_t, const char*) {}
  void barrier() {}
  void warp_barrier(uint32, uint32) {}
  void access(const ThreadView&, const void*, size_t, AccessKind, const void*) {}
  static void begin_launch() {}
  static std::string report() { return ""; }
};

#endif

// The check of the block that runs; none while the scheduler does.
RaceCheck* current_races();
// What the Python side turns into a line of a kernel.
uint64 offset_in_library(const void* code);

}  // namespace emulation
