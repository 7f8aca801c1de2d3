// What ThreadSanitizer must be told, and nothing in builds without it.
//
// Each CUDA thread is a thread to it. Switching between them orders nothing: only what is released
// and acquired here does, so that it sees every pair of accesses that no barrier orders.
#pragma once

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
  OrderPoint() : address_(fresh_address()) {}
  void reach() const { __tsan_release(address_); }
  void pass() const { __tsan_acquire(address_); }

 private:
  // ThreadSanitizer knows points by addresses. These come round again after very many, which hides
  // races between threads that far apart.
  static void* fresh_address() {
    constexpr uint32 addresses = 1u << 17;
    static uint64 words[addresses];
    static uint32 next = 0;
    return &words[next++ % addresses];
  }

  void* address_;
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
  void reach() const {}
  void pass() const {}
};

}  // namespace emulation

#endif
