// Replaces the global operator new of this test program. What the core allocates goes through it, because the program
// links the core's objects. The C library's own allocations do not: tests/faults fails those.
#include "support/failing_new.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <new>

namespace {

void* take(std::size_t bytes) noexcept {
  return slabpool::test::failing_new::fails() ? nullptr : std::malloc(bytes != 0 ? bytes : 1);
}

void* take(std::size_t bytes, std::align_val_t align) noexcept {
  if (slabpool::test::failing_new::fails()) return nullptr;
  const auto unit = static_cast<std::size_t>(align);
  return std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
}

void* checked(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

// The nothrow forms of the standard library call these and catch what they throw.
void* operator new(std::size_t bytes) { return checked(take(bytes)); }
void* operator new(std::size_t bytes, std::align_val_t align) { return checked(take(bytes, align)); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return take(bytes); }
void* operator new[](std::size_t bytes) { return checked(take(bytes)); }
void* operator new[](std::size_t bytes, std::align_val_t align) { return checked(take(bytes, align)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace slabpool::test {
namespace {

// Otherwise every other test here would pass without a failure.
TEST(FailingNew, TheKthArmedAllocationFails) {
  failing_new::fail(2);
  int thrown = 0;
  for (int i = 0; i < 4; ++i) {
    // Called by name, because a compiler may leave out a pair of new and delete expressions.
    ::operator delete(::operator new(8));
    const failing_new::Armed armed;
    try {
      ::operator delete(::operator new(8));
    } catch (const std::bad_alloc&) {
      ++thrown;
    }
  }
  EXPECT_EQ(thrown, 1);
  EXPECT_EQ(failing_new::state.made, 4U);
  EXPECT_EQ(failing_new::state.failed, 1U);
}

}  // namespace
}  // namespace slabpool::test
