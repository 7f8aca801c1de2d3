// Estimates what the memory does for each access of a warp: wavefronts of shared memory, which bank
// conflicts multiply, and sectors of global memory, which scattered lanes do.
//
// From the same calls as race_check.h. Lanes run one after the other here, so which of their
// accesses would have been one request is concluded: the n-th by each lane at one instruction of
// g++ since all lanes of the warp last met. README.md says where that, and g++, differ from a GPU.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "kernel_calls.h"
#include "race_check.h"
#include "types.h"

namespace emulation {

enum class Space { own, shared, global };  // own: registers on a GPU, or what plays the thread

// What the requests of one instruction took together. emulator.py has the same struct.
struct AccessCount {
  uint64 place;  // offset within the library
  uint32 space;
  uint32 kind;
  uint64 bytes;  // of each lane
  uint64 requests;
  uint64 taken;  // wavefronts of shared memory, sectors of global memory
  uint64 least;  // without bank conflicts, and with the lanes' bytes side by side
};

#ifdef SAEC_RACECHECK

class AccessCounts {
 public:
  explicit AccessCounts(uint32 warps) : warps_(warps) {}
  ~AccessCounts() { meet(); }
  AccessCounts(const AccessCounts&) = delete;
  AccessCounts& operator=(const AccessCounts&) = delete;

  // `code` is where the access returns to. Only sizes that one instruction has are counted.
  void access(const ThreadView& thread, const void* at, size_t bytes, AccessKind kind,
              const void* code);
  // All lanes of the warp, or of every warp, have come to one place.
  void meet(uint32 warp);
  void meet();

  // Of all blocks of a launch.
  static void begin_launch();
  // False past the last.
  static bool read(size_t index, AccessCount* count);

 private:
  struct Instruction {
    const void* code;
    Space space;
    AccessKind kind;
    size_t bytes;

    bool operator<(const Instruction& other) const {
      return std::tie(code, space, kind, bytes) <
             std::tie(other.code, other.space, other.kind, other.bytes);
    }
  };
  struct Request {
    uint32 lanes = 0;
    uint64 at[warp_size] = {};
  };
  struct Requests {
    std::vector<Request> in_order;
    uint32 made[warp_size] = {};  // by each lane
  };
  struct Cost {
    uint64 requests = 0;
    uint64 taken = 0;
    uint64 least = 0;
  };
  using Warp = std::map<Instruction, Requests>;

  static void add_wavefronts(Cost& cost, const Instruction& instruction, const Request& request);
  static void add_sectors(Cost& cost, const Instruction& instruction, const Request& request);

  static std::map<Instruction, Cost> costs_;
  std::vector<Warp> warps_;
};

#else

class AccessCounts {
 public:
  explicit AccessCounts(uint32) {}
  void access(const ThreadView&, const void*, size_t, AccessKind, const void*) {}
  void meet(uint32) {}
  void meet() {}
  static void begin_launch() {}
  static bool read(size_t, AccessCount*) { return false; }
};

#endif

// The counts of the block that runs; none where nothing is to be counted.
AccessCounts* current_accesses();
// Where an address lies, for the thread that runs.
Space space_of(const void* at);

}  // namespace emulation
