// A stack of its own to run on, left and entered again by one switch of registers.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {

class Fiber {
 public:
  // `body` runs at the first `enter` and must never return.
  explicit Fiber(void (*body)());
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Goes on with this fiber until it leaves. Not to be called on a fiber.
  void enter();
  // Goes back to where this fiber was entered. To be called on this fiber.
  void leave();
  // Whether an address is on its stack.
  bool holds(const void* at) const;

  // The first thing that `body` does.
  static void arrived();

 private:
  void switch_in();
  void switch_out();

  char* stack_;
  void* asan_stack_ = nullptr;
  void* tsan_fiber_ = nullptr;
#if defined(__x86_64__)
  void* stack_pointer_;
#else
  ucontext_t context_;
#endif
};

}  // namespace emulation
