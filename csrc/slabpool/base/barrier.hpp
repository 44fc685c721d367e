// A memory barrier that one thread has all others execute, by membarrier(2), so that their hot paths need none.
#pragma once

#include "slabpool/base/export.hpp"

namespace slabpool {

// Whether barrier_all_threads() works, as far as this process knows. Looked up when the library is loaded, and false for
// ever after a call that failed: a seccomp filter may have been added.
SLABPOOL_API bool asymmetric_barrier() noexcept;

// True: every running thread of this process has executed a full memory barrier during the call. False: the kernel
// refuses that, and nothing is known.
[[nodiscard]] SLABPOOL_API bool barrier_all_threads() noexcept;

}  // namespace slabpool
