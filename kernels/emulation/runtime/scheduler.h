// Runs the threads of a launch, each a fiber, one at a time in an order that a seed decides.
//
// A thread goes on until it waits: for its block at a barrier, or for lanes of its warp in a
// collective. Whatever is left to chance on a GPU, who is first between two waits, is tried here by
// running again with other seeds.
#pragma once

#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "access_counts.h"
#include "fiber.h"
#include "kernel_calls.h"
#include "launch.h"
#include "race_check.h"
#include "shared_memory.h"
#include "thread_sanitizer.h"
#include "types.h"

namespace emulation {

enum class State { ready, at_barrier, in_collective, done };

// A fiber and the CUDA thread that it plays, another one for each block.
struct Thread : ThreadView {
  explicit Thread(void (*body)()) : ThreadView(), fiber(body) {}

  Fiber fiber;
  State state = State::done;
  const char* doing = "";  // the call that it waits in
  Site site = {"", 0};
  bool fenced = false;
  uint32 closed_groups = 0;
  std::deque<PendingCopy> copies;
  bool carries_out_copies = false;
};

// A collective that lanes of a warp have come to. Each lane leaves its request.
struct Meeting {
  uint32 mask;
  const char* name;
  Site site;
  uint32 arrived = 0;
  void* requests[warp_size] = {};
  OrderPoint order = {};  // orders nothing, but for __syncwarp
};

struct Block : BlockView {
  Block(const Launch& launch, uint3 place);

  // The thread, or null past the end of a block that does not fill its last warp.
  Thread* lane_of(uint32 warp, uint32 lane) const;

  RaceCheck races;
  AccessCounts accesses;
  SharedMemory shared;
  std::vector<Thread*> threads;
  // By warp. Parts of a warp can meet apart from each other.
  std::vector<std::vector<Meeting>> meetings;
  uint32 alive = 0;
  uint32 at_barrier = 0;
  const Thread* first_at_barrier = nullptr;
  uint32 votes = 0;          // of those at the barrier
  uint32 counted_votes = 0;  // at the last barrier that all passed
  uint32 last_warp = 0;
  OrderPoint barrier_order = OrderPoint::fresh();  // of the barrier that is next
};

class Scheduler {
 public:
  // What completes a collective, run once all lanes are there: gives each its result.
  using Complete = void (*)(void* const (&requests)[warp_size], uint32 lanes);

  void run(const Launch& launch);

  // For the thread that runs.
  Thread& thread() { return *thread_; }
  Block& block() { return *block_; }
  const Launch& launch() const { return *launch_; }
  uint32 barrier(bool vote, const char* name, Site site);
  // Of all collectives __syncwarp alone orders memory.
  void collective(uint32 mask, void* request, Complete complete, const char* name, Site site,
                  bool orders_memory = false);
  [[noreturn]] void fail(const std::string& message);

 private:
  struct Abandoned {};  // thrown through a kernel once the launch has failed

  Meeting& meeting_of(uint32 mask, const char* name, Site site);
  uint32 expected_lanes(uint32 mask);
  static void play();
  void play_thread();
  void wait(State state);
  void go_on(Thread& thread, Block& block);
  std::vector<uint3> blocks_in_order();
  void start_block(uint3 place);
  void take_turns(Block& block);
  std::vector<Thread*> next_turns(Block& block);
  void end_block(Block& block);
  void abandon_all();
  std::string deadlock(const Block& block) const;
  bool drawn_order() const { return launch_->seed > 1; }
  bool runs_ahead() const { return launch_->seed % 2 == 1; }

  const Launch* launch_ = nullptr;
  Thread* thread_ = nullptr;
  Block* block_ = nullptr;
  std::string error_;
  std::mt19937 random_;
  std::vector<std::unique_ptr<Thread>> all_threads_;
  std::deque<Thread*> free_threads_;
  std::vector<std::unique_ptr<Block>> running_;
  // Two, because one would order a block that begins after those that have ended.
  OrderPoint begun_;
  OrderPoint ended_;
};

Scheduler& scheduler();

}  // namespace emulation
