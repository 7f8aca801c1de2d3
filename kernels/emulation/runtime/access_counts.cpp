#include "access_counts.h"

#ifdef SAEC_RACECHECK

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <set>
#include <utility>

namespace emulation {
namespace {

constexpr size_t most_bytes = 16;  // that a lane loads or stores with one instruction
constexpr uint64 banks = 32;
constexpr uint64 bank_bytes = 4;
constexpr uint64 sector_bytes = 32;

}  // namespace

std::map<AccessCounts::Instruction, AccessCounts::Cost> AccessCounts::costs_;

void AccessCounts::access(const ThreadView& thread, const void* at, size_t bytes, AccessKind kind,
                          const void* code) {
  const Space space = space_of(at);
  if (space == Space::own || bytes > most_bytes) return;
  Requests& requests = warps_[thread.warp][{code, space, kind, bytes}];
  const uint32 turn = requests.made[thread.lane]++;
  if (turn == requests.in_order.size()) requests.in_order.emplace_back();
  Request& request = requests.in_order[turn];
  request.lanes |= 1u << thread.lane;
  request.at[thread.lane] = reinterpret_cast<std::uintptr_t>(at);
}

void AccessCounts::meet(uint32 warp) {
  for (const auto& [instruction, requests] : warps_[warp]) {
    Cost& cost = costs_[instruction];
    for (const Request& request : requests.in_order) {
      cost.requests++;
      if (instruction.space == Space::shared) {
        add_wavefronts(cost, instruction, request);
      } else {
        add_sectors(cost, instruction, request);
      }
    }
  }
  warps_[warp].clear();
}

void AccessCounts::meet() {
  for (uint32 warp = 0; warp < warps_.size(); warp++) meet(warp);
}

// As many lanes at once as all banks together have bytes for: halves of the warp with 8 bytes each,
// quarters with 16. A wavefront takes one word of each bank, for however many lanes want it;
// atomics of lanes to one word take turns.
void AccessCounts::add_wavefronts(Cost& cost, const Instruction& instruction,
                                  const Request& request) {
  const uint64 at_once = banks * bank_bytes / std::max<uint64>(instruction.bytes, bank_bytes);
  for (uint32 first = 0; first < warp_size; first += at_once) {
    std::map<uint64, uint64> turns_of_words;
    for (uint32 lane = first; lane < first + at_once; lane++) {
      if ((request.lanes >> lane & 1) == 0) continue;
      const uint64 last = (request.at[lane] + instruction.bytes - 1) / bank_bytes;
      for (uint64 word = request.at[lane] / bank_bytes; word <= last; word++) {
        uint64& turns = turns_of_words[word];
        turns = instruction.kind == AccessKind::atomic ? turns + 1 : 1;
      }
    }
    uint64 turns_of_banks[banks] = {};
    uint64 most_of_word = 0;
    for (const auto& [word, turns] : turns_of_words) {
      turns_of_banks[word % banks] += turns;
      most_of_word = std::max(most_of_word, turns);
    }
    cost.taken += *std::max_element(turns_of_banks, turns_of_banks + banks);
    cost.least += most_of_word;
  }
}

void AccessCounts::add_sectors(Cost& cost, const Instruction& instruction,
                               const Request& request) {
  std::set<uint64> starts;
  std::set<uint64> sectors;
  for (uint32 lane = 0; lane < warp_size; lane++) {
    if ((request.lanes >> lane & 1) == 0) continue;
    const uint64 last = (request.at[lane] + instruction.bytes - 1) / sector_bytes;
    for (uint64 sector = request.at[lane] / sector_bytes; sector <= last; sector++) {
      sectors.insert(sector);
    }
    starts.insert(request.at[lane]);
  }
  uint64 bytes = 0;
  uint64 end = 0;  // of the bytes of lanes before
  for (const uint64 start : starts) {
    bytes += start + instruction.bytes - std::max(start, end);
    end = start + instruction.bytes;
  }
  cost.taken += sectors.size();
  cost.least += (bytes + sector_bytes - 1) / sector_bytes;
}

void AccessCounts::begin_launch() { costs_.clear(); }

bool AccessCounts::read(size_t index, AccessCount* count) {
  if (index >= costs_.size()) return false;
  const auto& [instruction, cost] = *std::next(costs_.begin(), static_cast<std::ptrdiff_t>(index));
  *count = {offset_in_library(instruction.code),
            static_cast<uint32>(instruction.space),
            static_cast<uint32>(instruction.kind),
            instruction.bytes,
            cost.requests,
            cost.taken,
            cost.least};
  return true;
}

}  // namespace emulation

#endif
