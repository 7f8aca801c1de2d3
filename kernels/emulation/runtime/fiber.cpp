#include "fiber.h"

#include <sys/mman.h>

#include <stdexcept>

#include "types.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef SAEC_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace emulation {
namespace {

constexpr size_t page_bytes = 4096;
#if defined(__SANITIZE_ADDRESS__) || defined(SAEC_TSAN)
constexpr size_t stack_bytes = 512 * 1024;  // instrumented frames are several times larger
#else
constexpr size_t stack_bytes = 128 * 1024;
#endif

// Where the fiber that runs was entered from.
struct Home {
  const void* asan_bottom = nullptr;
  size_t asan_bytes = 0;
  void* asan_stack = nullptr;
  void* tsan_fiber = nullptr;
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
};
Home home;

// A page below the stack that cannot be touched turns an overflow into a crash. Stacks are never
// given back: fibers live as long as the process.
char* new_stack() {
  void* memory = mmap(nullptr, stack_bytes + page_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("no memory for the stack of a thread");
  mprotect(memory, page_bytes, PROT_NONE);
  return static_cast<char*>(memory) + page_bytes;
}

}  // namespace

#if defined(__x86_64__)
// ucontext makes two system calls a switch, and a matrix product takes 32 switches.
extern "C" void saec_switch_stack(void** saved, void* next);
asm(R"(
.text
.globl saec_switch_stack
.hidden saec_switch_stack
.type saec_switch_stack,@function
saec_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size saec_switch_stack,.-saec_switch_stack
)");

Fiber::Fiber(void (*body)()) : stack_(new_stack()) {
  // What the switch pops: six registers, the address to return to, and above it the return address
  // that `body` believes to have, which also aligns its stack.
  void** top = reinterpret_cast<void**>(stack_ + stack_bytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(body);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  stack_pointer_ = top;
#ifdef SAEC_TSAN
  tsan_fiber_ = __tsan_create_fiber(0);
#endif
}

void Fiber::switch_in() { saec_switch_stack(&home.stack_pointer, stack_pointer_); }
void Fiber::switch_out() { saec_switch_stack(&stack_pointer_, home.stack_pointer); }

#else

Fiber::Fiber(void (*body)()) : stack_(new_stack()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = stack_bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, body, 0);
#ifdef SAEC_TSAN
  tsan_fiber_ = __tsan_create_fiber(0);
#endif
}

void Fiber::switch_in() { swapcontext(&home.context, &context_); }
void Fiber::switch_out() { swapcontext(&context_, &home.context); }

#endif

bool Fiber::holds(const void* at) const { return within(at, stack_, stack_bytes); }

void Fiber::enter() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&home.asan_stack, stack_, stack_bytes);
#endif
#ifdef SAEC_TSAN
  home.tsan_fiber = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
  switch_in();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(home.asan_stack, nullptr, nullptr);
#endif
}

void Fiber::leave() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&asan_stack_, home.asan_bottom, home.asan_bytes);
#endif
#ifdef SAEC_TSAN
  __tsan_switch_to_fiber(home.tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
  switch_out();
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(asan_stack_, &home.asan_bottom, &home.asan_bytes);
#endif
}

void Fiber::arrived() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &home.asan_bottom, &home.asan_bytes);
#endif
}

}  // namespace emulation
