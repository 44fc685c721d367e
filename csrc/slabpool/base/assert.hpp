// Runtime assertions, at two levels.
//
// Level 0 is a release build: an assertion is not evaluated and generates no code. Level 1 is a debug or sanitizer
// build: each SLABPOOL_ASSERT checks one condition in constant time. Level 2 (-DSLABPOOL_ASSERT_LEVEL=2) also checks
// whole structures after each change; SLABPOOL_VERIFY does so at every level for pools with debug=2.
//
// A failed assertion prints its file, line, condition, message and values to stderr and aborts. It allocates
// nothing and takes no lock, so it may stand wherever a lock is held.
#pragma once

#include <unistd.h>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <system_error>
#include <type_traits>

#ifndef SLABPOOL_ASSERT_LEVEL
#if !defined(NDEBUG) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLABPOOL_ASSERT_LEVEL 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SLABPOOL_ASSERT_LEVEL 1
#endif
#endif
#endif
#ifndef SLABPOOL_ASSERT_LEVEL
#define SLABPOOL_ASSERT_LEVEL 0
#endif

namespace slabpool {

// A value shown by a failed assertion: an integer, an enumerator, a bool or a pointer.
struct AssertValue {
  enum class Form : std::uint8_t { number, negative, pointer };
  std::uint64_t bits = 0;
  Form form = Form::number;

  template <typename T>
  static AssertValue of(T value) noexcept {
    if constexpr (std::is_pointer_v<T>) {
      return {reinterpret_cast<std::uintptr_t>(value), Form::pointer};
    } else if constexpr (std::is_null_pointer_v<T>) {
      return {0, Form::pointer};
    } else if constexpr (std::is_enum_v<T>) {
      return of(static_cast<std::underlying_type_t<T>>(value));
    } else {
      static_assert(std::is_integral_v<T>, "load an atomic or take a size before it is shown");
      if constexpr (std::is_signed_v<T>) {
        if (value < 0) return {std::uint64_t{0} - static_cast<std::uint64_t>(value), Form::negative};
      }
      return {static_cast<std::uint64_t>(value), Form::number};
    }
  }
};

// `names`: the source text of the values, separated by commas; empty if there are none.
[[noreturn, gnu::cold, gnu::noinline]] inline void assert_failed_with(
    const char* file, int line, const char* condition, const char* message, const char* names,
    const AssertValue* values, std::size_t count) noexcept {
  char text[1024];  // what does not fit is cut off
  char* at = text;
  char* const end = text + sizeof text - 1;
  const auto print = [&](const char* what) {
    while (*what != '\0' && at != end) *at++ = *what++;
  };
  const auto print_number = [&](std::uint64_t number, int base) {
    const auto done = std::to_chars(at, end, number, base);
    if (done.ec == std::errc{}) at = done.ptr;
  };
  print("slabpool: ");
  print(file);
  print(":");
  print_number(static_cast<std::uint64_t>(line), 10);
  print(": assertion failed: ");
  print(condition);
  print(": ");
  print(message);
  for (std::size_t i = 0; i < count; ++i) {
    print(i == 0 ? " [" : ", ");
    if (i == 0) print(names);
    if (i == 0) print(" = ");
    const AssertValue::Form form = values[i].form;
    print(form == AssertValue::Form::pointer ? "0x" : form == AssertValue::Form::negative ? "-" : "");
    print_number(values[i].bits, form == AssertValue::Form::pointer ? 16 : 10);
  }
  if (count != 0) print("]");
  *at++ = '\n';
  for (const char* from = text; from != at;) {
    const auto wrote = ::write(STDERR_FILENO, from, static_cast<std::size_t>(at - from));
    if (wrote <= 0) break;
    from += wrote;
  }
  std::abort();
}

template <typename... T>
[[noreturn, gnu::cold, gnu::noinline]] void assert_failed(const char* file, int line,
                                                          const char* condition, const char* message,
                                                          const char* names, T... values) noexcept {
  const AssertValue shown[sizeof...(T) + 1] = {AssertValue::of(values)...};
  assert_failed_with(file, line, condition, message, names, shown, sizeof...(T));
}

// Never defined: only its name stands, in sizeof.
template <typename... T>
char assert_not_evaluated(const T&... values) noexcept;

}  // namespace slabpool

// Always checked, at every level. The macros below are made of it.
#define SLABPOOL_ASSERT_ALWAYS(condition, message, ...)                             \
  ((condition) ? static_cast<void>(0)                                               \
               : ::slabpool::assert_failed(__FILE__, __LINE__, #condition, message, \
                                           "" #__VA_ARGS__ __VA_OPT__(, ) __VA_ARGS__))

// Compiled, so that it stays correct and its variables count as used, but never evaluated.
#define SLABPOOL_ASSERT_NEVER(condition, message, ...) \
  static_cast<void>(                                   \
      sizeof(::slabpool::assert_not_evaluated((condition) ? 1 : 0 __VA_OPT__(, ) __VA_ARGS__)))

// SLABPOOL_ASSERT(condition, "what holds", values...): one condition in constant time.
#if SLABPOOL_ASSERT_LEVEL >= 1
#define SLABPOOL_ASSERT(condition, ...) SLABPOOL_ASSERT_ALWAYS(condition, __VA_ARGS__)
#else
#define SLABPOOL_ASSERT(condition, ...) SLABPOOL_ASSERT_NEVER(condition, __VA_ARGS__)
#endif

// The same for a condition that takes longer than constant time.
#if SLABPOOL_ASSERT_LEVEL >= 2
#define SLABPOOL_ASSERT2(condition, ...) SLABPOOL_ASSERT_ALWAYS(condition, __VA_ARGS__)
#else
#define SLABPOOL_ASSERT2(condition, ...) SLABPOOL_ASSERT_NEVER(condition, __VA_ARGS__)
#endif

// SLABPOOL_VERIFY(enabled, verdict): `verdict` checks a whole structure and is null or names the broken invariant.
// Evaluated at level 2, and at every level where `enabled` is true: in pools with debug=2.
#define SLABPOOL_VERIFY(enabled, verdict)                                                           \
  do {                                                                                              \
    if (SLABPOOL_ASSERT_LEVEL >= 2 || (enabled)) {                                                  \
      if (const char* slabpool_broken = (verdict))                                                  \
        ::slabpool::assert_failed(__FILE__, __LINE__, #verdict " == nullptr", slabpool_broken, ""); \
    }                                                                                               \
  } while (false)
