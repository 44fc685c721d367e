// SLABPOOL_TSAN: 1 under ThreadSanitizer, which sees neither assembler nor membarrier(2), else 0.
#pragma once

#if defined(__SANITIZE_THREAD__)
#define SLABPOOL_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLABPOOL_TSAN 1
#endif
#endif
#ifndef SLABPOOL_TSAN
#define SLABPOOL_TSAN 0
#endif
