#include "race_check.h"

#ifdef SAEC_RACECHECK

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <tuple>

namespace emulation {
namespace {

constexpr size_t most_reported = 4;

// One message for each pair of places, however many bytes and threads raced there.
std::map<std::tuple<std::string, std::string, const void*, const void*>, std::string> races;

std::string place(const void* code) {
  char text[32];
  snprintf(text, sizeof text, "[+0x%llx]", offset_in_library(code));
  return text;
}

}  // namespace

uint64 offset_in_library(const void* code) {
  Dl_info library;
  if (dladdr(code, &library) == 0) return 0;
  const auto after = static_cast<const char*>(code) - static_cast<char*>(library.dli_fbase);
  return static_cast<uint64>(after) - 1;  // within the call, not after it
}

RaceCheck::RaceCheck(uint32 warps) : warps_(warps) {
  for (Warp& warp : warps_) {
    for (uint32 lane = 0; lane < warp_size; lane++) {
      std::fill_n(warp.times[lane], warp_size, 0);
      warp.times[lane][lane] = 1;
    }
  }
}

void RaceCheck::add_memory(const void* start, size_t bytes, const char* name) {
  memories_.push_back({static_cast<const char*>(start), name, std::vector<Byte>(bytes)});
}

void RaceCheck::barrier() { interval_++; }

void RaceCheck::warp_barrier(uint32 warp, uint32 lanes) {
  auto& times = warps_[warp].times;
  uint32 joined[warp_size] = {};
  for (uint32 lane = 0; lane < warp_size; lane++) {
    if ((lanes >> lane & 1) == 0) continue;
    for (uint32 other = 0; other < warp_size; other++) {
      joined[other] = std::max(joined[other], times[lane][other]);
    }
  }
  for (uint32 lane = 0; lane < warp_size; lane++) {
    if ((lanes >> lane & 1) == 0) continue;
    std::copy_n(joined, warp_size, times[lane]);
    times[lane][lane]++;
  }
}

void RaceCheck::access(const ThreadView& thread, const void* at, size_t bytes, AccessKind kind,
                       const void* code) {
  const char* const address = static_cast<const char*>(at);
  for (Memory& memory : memories_) {
    if (address < memory.start || address >= memory.start + memory.bytes.size()) continue;
    const size_t first = address - memory.start;
    const size_t last = std::min(first + bytes, memory.bytes.size());
    for (size_t i = first; i < last; i++) {
      Byte& byte = memory.bytes[i];
      if (byte.interval != interval_) {
        byte.interval = interval_;
        byte.writes.clear();
        byte.reads.clear();
        byte.atomics.clear();
      }
      const bool reads_only = kind == AccessKind::read;
      const char* const after = reads_only ? "read beside write" : "write beside write";
      compare(byte.writes, thread, after, memory, i, code);
      if (kind != AccessKind::atomic) compare(byte.atomics, thread, after, memory, i, code);
      if (!reads_only) compare(byte.reads, thread, "write beside read", memory, i, code);
      switch (kind) {
        case AccessKind::read:
          remember(byte.reads, thread, code);
          break;
        case AccessKind::atomic:
          remember(byte.atomics, thread, code);
          break;
        case AccessKind::write:
          byte.writes.clear();
          byte.reads.clear();
          byte.atomics.clear();
          remember(byte.writes, thread, code);
          break;
      }
    }
    return;
  }
}

void RaceCheck::compare(const std::vector<Group>& groups, const ThreadView& thread,
                        const char* what, const Memory& memory, size_t at, const void* code) const {
  for (const Group& group : groups) {
    const uint32 lanes = unordered_lanes(group, thread);
    if (lanes == 0) continue;
    std::string& message = races[{what, memory.name, group.code, code}];
    if (!message.empty()) return;
    const uint32 other = group.warp * warp_size + __builtin_ctz(lanes);
    message = std::string(what) + " in " + memory.name + " at byte " + std::to_string(at) +
              ": thread " + std::to_string(thread.number) + " at " + place(code) + ", thread " +
              std::to_string(other) + " at " + place(group.code);
    return;
  }
}

// Those of the group's lanes that nothing orders before what the thread does now.
uint32 RaceCheck::unordered_lanes(const Group& group, const ThreadView& thread) const {
  if (group.warp != thread.warp) return group.lanes;
  uint32 unordered = 0;
  for (uint32 others = group.lanes & ~(1u << thread.lane); others != 0; others &= others - 1) {
    const uint32 other = __builtin_ctz(others);
    if (warps_[thread.warp].times[thread.lane][other] < group.time) unordered |= 1u << other;
  }
  return unordered;
}

void RaceCheck::remember(std::vector<Group>& groups, const ThreadView& thread,
                         const void* code) const {
  const uint32 bit = 1u << thread.lane;
  const uint32 time = warps_[thread.warp].times[thread.lane][thread.lane];
  for (Group& group : groups) {
    // The later access of a lane stands for its earlier ones.
    if (group.warp == thread.warp && group.time != time) group.lanes &= ~bit;
  }
  const auto empty = [](const Group& group) { return group.lanes == 0; };
  groups.erase(std::remove_if(groups.begin(), groups.end(), empty), groups.end());
  for (Group& group : groups) {
    if (group.warp == thread.warp && group.time == time) {
      group.lanes |= bit;
      return;
    }
  }
  groups.push_back({thread.warp, time, bit, code});
}

void RaceCheck::begin_launch() { races.clear(); }

std::string RaceCheck::report() {
  if (races.empty()) return "";
  std::string text = std::to_string(races.size()) + " races in shared memory";
  size_t reported = 0;
  for (const auto& race : races) {
    if (reported++ == most_reported) break;
    text += "; " + race.second;
  }
  return text;
}

}  // namespace emulation

#endif
