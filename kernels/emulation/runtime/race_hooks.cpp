// The functions that code compiled with -fsanitize=thread calls before each access of memory, here
// in place of ThreadSanitizer's own.
#ifdef SAEC_RACECHECK

#include <cstdint>

#include "access_counts.h"
#include "race_check.h"

namespace {

void note(const volatile void* at, size_t bytes, emulation::AccessKind kind, const void* code) {
  emulation::RaceCheck* const races = emulation::current_races();
  // Constructors of the library run before any thread of a kernel.
  if (races == nullptr) return;
  const void* const address = const_cast<const void*>(at);
  races->access(*emulation::current, address, bytes, kind, code);
  emulation::AccessCounts* const accesses = emulation::current_accesses();
  if (accesses != nullptr) accesses->access(*emulation::current, address, bytes, kind, code);
}

}  // namespace

// The caller's address must be taken in the hook itself.
#define NOTE(at, bytes, kind) \
  note(at, bytes, emulation::AccessKind::kind, __builtin_return_address(0))

#define HOOKS_OF_SIZE(bytes)                                             \
  void __tsan_read##bytes(void* at) { NOTE(at, bytes, read); }           \
  void __tsan_write##bytes(void* at) { NOTE(at, bytes, write); }         \
  void __tsan_unaligned_read##bytes(void* at) { NOTE(at, bytes, read); } \
  void __tsan_unaligned_write##bytes(void* at) { NOTE(at, bytes, write); }

// Those that the emulation of atomics in emulated_port.h comes down to.
#define ATOMIC_HOOKS(bits, T)                                                                   \
  T __tsan_atomic##bits##_load(const volatile T* at, int) {                                     \
    NOTE(at, sizeof(T), atomic);                                                                \
    return *at;                                                                                 \
  }                                                                                             \
  T __tsan_atomic##bits##_fetch_add(volatile T* at, T value, int) {                             \
    NOTE(at, sizeof(T), atomic);                                                                \
    const T before = *at;                                                                       \
    *at = static_cast<T>(before + value);                                                       \
    return before;                                                                              \
  }                                                                                             \
  bool __tsan_atomic##bits##_compare_exchange_strong(volatile T* at, T* expected, T value, int, \
                                                     int) {                                     \
    NOTE(at, sizeof(T), atomic);                                                                \
    const T before = *at;                                                                       \
    if (before != *expected) {                                                                  \
      *expected = before;                                                                       \
      return false;                                                                             \
    }                                                                                           \
    *at = value;                                                                                \
    return true;                                                                                \
  }

extern "C" {
HOOKS_OF_SIZE(1)
HOOKS_OF_SIZE(2)
HOOKS_OF_SIZE(4)
HOOKS_OF_SIZE(8)
HOOKS_OF_SIZE(16)
void __tsan_read_range(void* at, size_t bytes) { NOTE(at, bytes, read); }
void __tsan_write_range(void* at, size_t bytes) { NOTE(at, bytes, write); }
ATOMIC_HOOKS(32, std::uint32_t)
ATOMIC_HOOKS(64, std::uint64_t)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}

#endif
