// Invariants, checked at run time.
//
// Level 1 (SLABPOOL_ASSERT) is on in builds without NDEBUG: debug builds, the C++ tests, the sanitizers. Level 2
// (SLABPOOL_ASSERT2) is for checks that walk a whole structure: on with -DSLABPOOL_ASSERT_LEVEL=2. Where an assertion is off,
// its condition is compiled and never evaluated, so that it costs nothing and its variables count as used.
// A failure prints file, line, condition and message, and aborts. It allocates nothing.
#pragma once

#include "slabpool/base/export.hpp"

#ifndef SLABPOOL_ASSERT_LEVEL
#ifdef NDEBUG
#define SLABPOOL_ASSERT_LEVEL 0
#else
#define SLABPOOL_ASSERT_LEVEL 1
#endif
#endif

namespace slabpool {

// `message` is printf's format, and may be left out.
[[noreturn, gnu::cold, gnu::noinline]] SLABPOOL_API void assertion_failed(const char* file, int line,
                                                                          const char* condition) noexcept;
[[noreturn, gnu::cold, gnu::noinline, gnu::format(printf, 4, 5)]] SLABPOOL_API void assertion_failed(
    const char* file, int line, const char* condition, const char* message, ...) noexcept;

}  // namespace slabpool

#define SLABPOOL_ASSERT_ON(condition, ...)                                                       \
  (static_cast<bool>(condition)                                                                  \
       ? static_cast<void>(0)                                                                    \
       : ::slabpool::assertion_failed(__FILE__, __LINE__, #condition __VA_OPT__(, ) __VA_ARGS__))
#define SLABPOOL_ASSERT_OFF(condition, ...) static_cast<void>(sizeof(static_cast<bool>(condition)))

#if SLABPOOL_ASSERT_LEVEL >= 1
#define SLABPOOL_ASSERT(...) SLABPOOL_ASSERT_ON(__VA_ARGS__)
#else
#define SLABPOOL_ASSERT(...) SLABPOOL_ASSERT_OFF(__VA_ARGS__)
#endif
#if SLABPOOL_ASSERT_LEVEL >= 2
#define SLABPOOL_ASSERT2(...) SLABPOOL_ASSERT_ON(__VA_ARGS__)
#else
#define SLABPOOL_ASSERT2(...) SLABPOOL_ASSERT_OFF(__VA_ARGS__)
#endif
