// How much work the long tests do: all of it in a plain build, a part of it under a sanitizer, which is five to twenty
// times slower.
#pragma once

#if defined(__SANITIZE_THREAD__)
#define SLABPOOL_TEST_SLOWER 20  // it detects a race without a collision
#elif defined(__SANITIZE_ADDRESS__)
#define SLABPOOL_TEST_SLOWER 10
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLABPOOL_TEST_SLOWER 20
#elif __has_feature(address_sanitizer)
#define SLABPOOL_TEST_SLOWER 10
#endif
#endif

namespace slabpool::test {

#if defined(SLABPOOL_TEST_SLOWER)
inline constexpr int kSlower = SLABPOOL_TEST_SLOWER;
#else
inline constexpr int kSlower = 1;
#endif

// Rounds of a loop that runs `full` times in a plain build.
constexpr int rounds(int full) { return full / kSlower > 0 ? full / kSlower : 1; }

}  // namespace slabpool::test
