#include "kernel_calls.h"

#include <cstdint>
#include <string>

#include "access_counts.h"
#include "matrix_product.h"
#include "scheduler.h"

namespace emulation {
namespace {

// What one lane gives to an exchange and gets from it.
struct Exchange {
  uint64 given;
  uint32 source_lane;
  uint64 got;
};

Exchange& exchange_of(void* request) { return *static_cast<Exchange*>(request); }

bool among(uint32 lanes, uint32 lane) { return lane < warp_size && (lanes >> lane & 1) != 0; }

// A thread that waits says where; one that fails between waits does so here.
[[noreturn]] void fail_at(const std::string& message, const char* doing, Site site) {
  Thread& thread = scheduler().thread();
  thread.doing = doing;
  thread.site = site;
  scheduler().fail(message);
}

void complete_shuffle(void* const (&requests)[warp_size], uint32 lanes) {
  constexpr uint64 poison = ~0ull;
  for (uint32 lane = 0; lane < warp_size; lane++) {
    if (!among(lanes, lane)) continue;
    Exchange& own = exchange_of(requests[lane]);
    const bool given = among(lanes, own.source_lane);
    own.got = given ? exchange_of(requests[own.source_lane]).given : poison;
  }
}

void complete_ballot(void* const (&requests)[warp_size], uint32 lanes) {
  uint32 votes = 0;
  for (uint32 lane = 0; lane < warp_size; lane++) {
    if (among(lanes, lane) && exchange_of(requests[lane]).given != 0) votes |= 1u << lane;
  }
  for (uint32 lane = 0; lane < warp_size; lane++) {
    if (among(lanes, lane)) exchange_of(requests[lane]).got = votes;
  }
}

void complete_match(void* const (&requests)[warp_size], uint32 lanes) {
  for (uint32 lane = 0; lane < warp_size; lane++) {
    if (!among(lanes, lane)) continue;
    Exchange& own = exchange_of(requests[lane]);
    own.got = 0;
    for (uint32 other = 0; other < warp_size; other++) {
      if (!among(lanes, other)) continue;
      if (exchange_of(requests[other]).given == own.given) own.got |= 1u << other;
    }
  }
}

void complete_warp_barrier(void* const (&)[warp_size], uint32 lanes) {
  scheduler().block().races.warp_barrier(scheduler().thread().warp, lanes);
}

void complete_product(void* const (&requests)[warp_size], uint32 lanes) {
  if (lanes != all_lanes) scheduler().fail("a matrix product needs all 32 lanes of the warp");
  ProductFragment* fragments[warp_size];
  for (uint32 lane = 0; lane < warp_size; lane++) {
    fragments[lane] = static_cast<ProductFragment*>(requests[lane]);
  }
  matrix_product(fragments, product_sums(scheduler().launch().seed));
}

}  // namespace

void fail(const char* message, Site site) { fail_at(message, "its own code", site); }

// ---- barriers and exchanges

uint32 barrier(bool vote, const char* name, Site site) {
  return scheduler().barrier(vote, name, site);
}

void warp_barrier(uint32 mask, Site site) {
  constexpr bool orders_memory = true;
  scheduler().collective(mask, nullptr, complete_warp_barrier, "__syncwarp", site, orders_memory);
}

uint64 shuffle(uint32 mask, uint64 value, uint32 source_lane, const char* name, Site site) {
  Exchange exchange = {value, source_lane, 0};
  scheduler().collective(mask, &exchange, complete_shuffle, name, site);
  return exchange.got;
}

uint32 ballot(uint32 mask, bool vote, const char* name, Site site) {
  Exchange exchange = {vote ? 1u : 0u, 0, 0};
  scheduler().collective(mask, &exchange, complete_ballot, name, site);
  return static_cast<uint32>(exchange.got);
}

uint32 match_any(uint32 mask, uint64 value, Site site) {
  Exchange exchange = {value, 0, 0};
  scheduler().collective(mask, &exchange, complete_match, "__match_any_sync", site);
  return static_cast<uint32>(exchange.got);
}

void multiply_f16(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1, Site site) {
  ProductFragment fragment = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
  scheduler().collective(all_lanes, &fragment, complete_product, "mma_f16", site);
  for (int i = 0; i < 4; i++) d[i] = fragment.d[i];
}

// ---- memory

void* dynamic_shared(Site site) {
  void* memory = scheduler().block().shared.dynamic();
  if (memory == nullptr) {
    fail_at("the launch gave no dynamic shared memory", "SAEC_DYNAMIC_SHARED", site);
  }
  return memory;
}

void* static_shared(const void* key, size_t bytes, const char* name, Site site) {
  constexpr size_t most_static_bytes = 48 * 1024;  // ptxas refuses more on every architecture
  SharedMemory& shared = scheduler().block().shared;
  void* memory = shared.array(key, bytes, name);
  const size_t static_bytes = shared.static_bytes();
  if (static_bytes > most_static_bytes) {
    fail_at("more than 48 KiB of static shared memory", "SAEC_STATIC_SHARED", site);
  }
  const Launch& launch = scheduler().launch();
  if (static_bytes + launch.shared_bytes > launch.most_shared_bytes) {
    fail_at(std::to_string(static_bytes) + " bytes of static and " +
                std::to_string(launch.shared_bytes) +
                " of dynamic shared memory are more than a block can have, " +
                std::to_string(launch.most_shared_bytes),
            "SAEC_STATIC_SHARED", site);
  }
  return memory;
}

void begin_copy(void* shared, const void* global, Site site) {
  constexpr size_t copy_bytes = 16;
  const auto target = reinterpret_cast<std::uintptr_t>(shared);
  const auto source = reinterpret_cast<std::uintptr_t>(global);
  if ((target | source) % copy_bytes != 0) {
    fail_at("both ends of the copy must be aligned to 16 bytes", "copy_async16", site);
  }
  const Unobserved unobserved;
  Thread& thread = scheduler().thread();
  thread.copies.push_back({shared, global, thread.closed_groups});
  // Of a copy the store that poisons the target is counted, and this load.
  AccessCounts* const accesses = current_accesses();
  if (accesses == nullptr) return;
  accesses->access(thread, global, copy_bytes, AccessKind::read, __builtin_return_address(0));
}

void close_copy_group() { scheduler().thread().closed_groups++; }

bool next_copy(uint32 open, PendingCopy* copy) {
  const Unobserved unobserved;
  Thread& thread = scheduler().thread();
  thread.carries_out_copies = false;
  if (thread.copies.empty()) return false;
  if (thread.copies.front().group + open >= thread.closed_groups) return false;
  *copy = thread.copies.front();
  thread.copies.pop_front();
  thread.carries_out_copies = true;
  return true;
}

void fence() { scheduler().thread().fenced = true; }
bool fenced() { return scheduler().thread().fenced; }

}  // namespace emulation
