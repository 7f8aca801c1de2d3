#include "scheduler.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace emulation {

const ThreadView* current = nullptr;

namespace {

// Blocks that run beside each other where the order is drawn: two are enough for one to see what
// the other left half done.
constexpr size_t blocks_at_once = 2;
// More fibers than threads, so that threads of one number in two blocks that follow each other are
// played by two: ThreadSanitizer would take one for a single thread, whose actions are in order.
constexpr size_t spare_threads = 7;

std::string text(const uint3& place) {
  return "(" + std::to_string(place.x) + "," + std::to_string(place.y) + "," +
         std::to_string(place.z) + ")";
}

std::string text(Site site) {
  const char* slash = strrchr(site.file, '/');
  return std::string(slash == nullptr ? site.file : slash + 1) + ":" + std::to_string(site.line);
}

std::string text(const Thread& thread) {
  return "thread " + text(thread.index) + " in " + thread.doing + " at " + text(thread.site);
}

uint32 volume(const uint3& size) { return size.x * size.y * size.z; }

uint3 place_within(const uint3& size, uint32 number) {
  return {number % size.x, number / size.x % size.y, number / size.x / size.y};
}

}  // namespace

Scheduler& scheduler() {
  // Never destroyed: fibers of it may still be on their stacks when the process ends.
  static Scheduler& one = *new Scheduler;
  return one;
}

RaceCheck* current_races() { return current == nullptr ? nullptr : &scheduler().block().races; }

AccessCounts* current_accesses() {
  if (current == nullptr || !scheduler().launch().count_accesses) return nullptr;
  // They were counted when they were begun.
  return scheduler().thread().carries_out_copies ? nullptr : &scheduler().block().accesses;
}

Space space_of(const void* at) {
  const Thread& thread = scheduler().thread();
  const Block& block = scheduler().block();
  if (block.shared.holds(at)) return Space::shared;
  const bool own = thread.fiber.holds(at) || within(at, &thread, sizeof thread) ||
                   within(at, &block, sizeof block) || within(at, &current, sizeof current);
  return own ? Space::own : Space::global;
}

Block::Block(const Launch& launch, uint3 place)
    : BlockView{launch.grid, launch.block, place},
      races((volume(launch.block) + warp_size - 1) / warp_size),
      accesses((volume(launch.block) + warp_size - 1) / warp_size),
      shared(launch.shared_bytes, races),
      meetings((volume(launch.block) + warp_size - 1) / warp_size) {
  // Threads of the kernel meet, and must not allocate where ThreadSanitizer looks on.
  for (std::vector<Meeting>& of_warp : meetings) of_warp.reserve(warp_size);
}

Thread* Block::lane_of(uint32 warp, uint32 lane) const {
  const size_t number = warp * warp_size + lane;
  return number < threads.size() ? threads[number] : nullptr;
}

// ---- what the running thread calls

uint32 Scheduler::barrier(bool vote, const char* name, Site site) {
  Thread& self = *thread_;
  Block& block = *block_;
  self.doing = name;
  self.site = site;
  if (block.alive != block.threads.size()) {
    fail("divergent barrier: other threads of the block have returned");
  }
  if (block.at_barrier == 0) block.first_at_barrier = &self;
  if (block.first_at_barrier->site != site) {
    fail("divergent barrier: " + text(*block.first_at_barrier));
  }
  block.votes += vote ? 1 : 0;
  block.at_barrier++;
  const OrderPoint order = block.barrier_order;
  order.reach();
  if (block.at_barrier == block.alive) {
    block.counted_votes = block.votes;
    block.votes = 0;
    block.at_barrier = 0;
    block.races.barrier();
    block.accesses.meet();
    block.barrier_order = OrderPoint::fresh();
    for (Thread* other : block.threads) other->state = State::ready;
    wait(State::ready);
  } else {
    wait(State::at_barrier);
  }
  order.pass();
  return block.counted_votes;
}

void Scheduler::collective(uint32 mask, void* request, Complete complete, const char* name,
                           Site site, bool orders_memory) {
  Thread& self = *thread_;
  Block& block = *block_;
  self.doing = name;
  self.site = site;
  Meeting& meeting = meeting_of(mask, name, site);
  if (orders_memory && meeting.arrived == 0) meeting.order = OrderPoint::fresh();
  const OrderPoint order = meeting.order;
  meeting.requests[self.lane] = request;
  meeting.arrived |= 1u << self.lane;
  order.reach();
  if (meeting.arrived == expected_lanes(mask)) {
    complete(meeting.requests, meeting.arrived);
    if (mask == all_lanes) block.accesses.meet(self.warp);
    for (uint32 lane = 0; lane < warp_size; lane++) {
      const bool arrived = (meeting.arrived >> lane & 1) != 0;
      if (arrived) block.lane_of(self.warp, lane)->state = State::ready;
    }
    std::vector<Meeting>& meetings = block.meetings[self.warp];
    std::swap(meeting, meetings.back());
    meetings.pop_back();
    wait(State::ready);
  } else {
    wait(State::in_collective);
  }
  order.pass();
}

// The collective that lanes of this mask have begun, or a new one. Other lanes of the mask may wait
// in another collective, as long as that does not wait for this lane.
Meeting& Scheduler::meeting_of(uint32 mask, const char* name, Site site) {
  if ((mask >> thread_->lane & 1) == 0) fail("the mask does not name the lane that passes it");
  std::vector<Meeting>& meetings = block_->meetings[thread_->warp];
  for (Meeting& other : meetings) {
    const bool same_call = other.site == site && strcmp(other.name, name) == 0;
    if (same_call && other.mask == mask) return other;
    const bool waits_for_this = (other.mask >> thread_->lane & 1) != 0;
    if (!waits_for_this || (other.arrived & mask) == 0) continue;
    if (same_call) fail("mismatched collective: its lanes pass different masks");
    fail(std::string("mismatched collective: other lanes of the mask wait in ") + other.name +
         " at " + text(other.site));
  }
  meetings.push_back({mask, name, site});
  return meetings.back();
}

// Those lanes of the mask that there are: the last warp of a block may lack some.
uint32 Scheduler::expected_lanes(uint32 mask) {
  uint32 expected = 0;
  for (uint32 lane = 0; lane < warp_size; lane++) {
    const Thread* other = block_->lane_of(thread_->warp, lane);
    if ((mask >> lane & 1) == 0 || other == nullptr) continue;
    if (other->state == State::done) fail("the mask names a lane that has returned");
    expected |= 1u << lane;
  }
  return expected;
}

void Scheduler::fail(const std::string& message) {
  if (error_.empty()) {
    error_ = message + " [block " + text(block_->index) + ", " + text(*thread_) + "]";
  }
  throw Abandoned();
}

void Scheduler::wait(State state) {
  thread_->state = state;
  thread_->fiber.leave();
  if (!error_.empty()) throw Abandoned();
}

// ---- fibers

void Scheduler::play() {
  Fiber::arrived();
  for (;;) scheduler().play_thread();
}

// Plays one thread from its beginning to its end; entered again, the next one.
void Scheduler::play_thread() {
  begun_.pass();
  try {
    if (error_.empty()) launch_->kernel->call(launch_->kernel->function, launch_->parameters);
  } catch (const Abandoned&) {
    // The launch has failed, and what this thread held is unwound.
  } catch (const std::exception& error) {
    if (error_.empty()) error_ = error.what();
  }
  ended_.reach();
  block_->alive--;
  thread_->state = State::done;
  thread_->fiber.leave();
}

void Scheduler::go_on(Thread& thread, Block& block) {
  thread_ = &thread;
  block_ = &block;
  current = &thread;
  thread.fiber.enter();
  current = nullptr;
}

// ---- blocks and launches

void Scheduler::run(const Launch& launch) {
  const Unobserved unobserved;
  launch_ = &launch;
  error_.clear();
  random_.seed(launch.seed);
  RaceCheck::begin_launch();
  AccessCounts::begin_launch();
  begun_ = OrderPoint::fresh();
  ended_ = OrderPoint::fresh();
  begun_.reach();
  const std::vector<uint3> places = blocks_in_order();
  const size_t most = drawn_order() ? std::min(blocks_at_once, places.size()) : 1;
  const size_t fibers = most * volume(launch.block) + spare_threads;
  while (all_threads_.size() < fibers) {
    all_threads_.push_back(std::make_unique<Thread>(play));
    free_threads_.push_back(all_threads_.back().get());
  }
  size_t started = 0;
  while (error_.empty() && (started < places.size() || !running_.empty())) {
    while (running_.size() < most && started < places.size()) start_block(places[started++]);
    const size_t chosen = running_.size() > 1 ? random_() % running_.size() : 0;
    Block& block = *running_[chosen];
    take_turns(block);
    if (block.alive > 0 || !error_.empty()) continue;
    end_block(block);
    running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(chosen));
  }
  if (!error_.empty()) abandon_all();
  ended_.pass();
  if (error_.empty()) error_ = RaceCheck::report();
  if (!error_.empty()) throw std::runtime_error(error_);
}

std::vector<uint3> Scheduler::blocks_in_order() {
  std::vector<uint3> places(volume(launch_->grid));
  for (uint32 i = 0; i < places.size(); i++) places[i] = place_within(launch_->grid, i);
  if (launch_->seed == 1) std::reverse(places.begin(), places.end());
  if (drawn_order()) std::shuffle(places.begin(), places.end(), random_);
  return places;
}

void Scheduler::start_block(uint3 place) {
  running_.push_back(std::make_unique<Block>(*launch_, place));
  Block& block = *running_.back();
  block.alive = volume(launch_->block);
  for (uint32 number = 0; number < block.alive; number++) {
    Thread& thread = *free_threads_.front();
    free_threads_.pop_front();
    thread.index = place_within(launch_->block, number);
    thread.number = number;
    thread.warp = number / warp_size;
    thread.lane = number % warp_size;
    thread.block = &block;
    thread.state = State::ready;
    thread.doing = "its own code";
    thread.site = {"", 0};
    thread.fenced = false;
    thread.closed_groups = 0;
    thread.copies.clear();
    thread.carries_out_copies = false;
    block.threads.push_back(&thread);
  }
}

void Scheduler::take_turns(Block& block) {
  const std::vector<Thread*> turns = next_turns(block);
  if (turns.empty()) {
    error_ = deadlock(block);
    return;
  }
  block.last_warp = turns.front()->warp;
  for (Thread* thread : turns) {
    if (error_.empty()) go_on(*thread, block);
  }
}

// Threads to run one after the other, in this order.
std::vector<Thread*> Scheduler::next_turns(Block& block) {
  std::vector<Thread*> turns;
  for (Thread* thread : block.threads) {
    if (thread->state == State::ready) turns.push_back(thread);
  }
  if (turns.empty()) return turns;
  if (launch_->seed == 1) std::reverse(turns.begin(), turns.end());
  if (drawn_order()) std::shuffle(turns.begin(), turns.end(), random_);
  if (!runs_ahead()) return turns;
  // The warp of the last turns goes on if it can.
  uint32 warp = turns.front()->warp;
  for (const Thread* thread : turns) {
    if (drawn_order() && thread->warp == block.last_warp) warp = block.last_warp;
  }
  const auto other_warp = [warp](const Thread* thread) { return thread->warp != warp; };
  turns.erase(std::remove_if(turns.begin(), turns.end(), other_warp), turns.end());
  return turns;
}

void Scheduler::end_block(Block& block) {
  free_threads_.insert(free_threads_.end(), block.threads.begin(), block.threads.end());
}

// Lets every thread that has not returned unwind its stack.
void Scheduler::abandon_all() {
  for (const auto& block : running_) {
    for (Thread* thread : block->threads) {
      while (thread->state != State::done) go_on(*thread, *block);
    }
    end_block(*block);
  }
  running_.clear();
}

std::string Scheduler::deadlock(const Block& block) const {
  constexpr size_t most_named = 4;
  std::string message = "deadlock in block " + text(block.index) + ": " +
                        std::to_string(block.alive) + " of " +
                        std::to_string(block.threads.size()) + " threads wait for others";
  std::vector<Site> named;
  for (const Thread* thread : block.threads) {
    if (thread->state == State::done || named.size() == most_named) continue;
    if (std::find(named.begin(), named.end(), thread->site) != named.end()) continue;
    named.push_back(thread->site);
    message += "; " + text(*thread);
  }
  return message;
}

}  // namespace emulation
