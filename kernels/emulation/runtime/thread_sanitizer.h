// What ThreadSanitizer must be told, and nothing in builds without it.
//
// Each CUDA thread is a thread to it. Switching between them orders nothing: only what is released
// and acquired here does, so that it sees every pair of accesses that no barrier orders.
#pragma once

#include <utility>

#include "types.h"

#ifdef SAEC_TSAN
#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}

namespace emulation {

// While one lives, what this thread does is not looked at: the emulator is not instrumented, but
// the memory functions of libc that it calls are.
class Unobserved {
 public:
  Unobserved() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unobserved() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  Unobserved(const Unobserved&) = delete;
  Unobserved& operator=(const Unobserved&) = delete;
};

// A point of order: who passes it sees what was done before others reached it. For one time only:
// at the next barrier of the same point, who is late to pass would see what early ones did since.
class OrderPoint {
 public:
  OrderPoint() = default;  // orders nothing
  static OrderPoint fresh() {
    const Unobserved unobserved;
    OrderPoint point;
    point.held_ = new Held;
    return point;
  }
  OrderPoint(const OrderPoint& other) : held_(other.held_) {
    if (held_ != nullptr) held_->holders++;
  }
  OrderPoint& operator=(const OrderPoint& other) {
    OrderPoint copy(other);
    std::swap(held_, copy.held_);
    return *this;
  }
  ~OrderPoint() {
    const Unobserved unobserved;
    if (held_ != nullptr && --held_->holders == 0) delete held_;
  }

  void reach() const {
    if (held_ != nullptr) __tsan_release(&held_->known_by_this_address);
  }
  void pass() const {
    if (held_ != nullptr) __tsan_acquire(&held_->known_by_this_address);
  }

 private:
  // On the heap, because ThreadSanitizer forgets an address when it is freed, and only then.
  struct Held {
    uint64 known_by_this_address = 0;
    uint32 holders = 1;
  };

  Held* held_ = nullptr;
};

}  // namespace emulation

#else

namespace emulation {

class Unobserved {
 public:
  Unobserved() {}  // not defaulted: an unused object would be warned about
};

class OrderPoint {
 public:
  static OrderPoint fresh() { return {}; }
  void reach() const {}
  void pass() const {}
};

}  // namespace emulation

#endif
